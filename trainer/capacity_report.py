"""What the rates come to, for people: each part's capacity, the bottleneck, and what would help.

fleet            31804 episodes an hour: 1 replicas x 128 slots, 14.5 s a completion; 1% in use
...
bottleneck       latency: every step waits for its slowest groups, and adding servers changes nothing
would help       32 completions a step: +58%; max_lag 2: +42%
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainer.capacity import (
    HOUR_S,
    capacities,
    expected_episodes,
    expected_step_s,
    fleet_s,
    judge_s,
    latency_s,
    learner_s,
)
from trainer.config import RunSettings
from trainer.rates import Layout, Rates, make_layout

NOTHING = 0.05  # less gain than this is none


@dataclass(frozen=True)
class Alternative:
    """Another layout, and by which factor it is faster: 0.1 is 10 % more episodes an hour."""

    name: str
    gain: float


def alternatives(layout: Layout, settings: RunSettings) -> dict[str, Alternative]:
    """What could be changed, each by itself. Twice the batch is reckoned to take the learner twice the time."""
    now = expected_episodes(layout)

    def changed(name: str, **changes: float) -> Alternative:
        return Alternative(name, expected_episodes(replace(layout, **changes)) / now - 1)  # type: ignore[arg-type]  # fields by name

    found = {
        "fleet": changed(f"{2 * layout.replicas} replicas", replicas=2 * layout.replicas),
        "judge": changed(f"{2 * layout.genrm_servers} GenRM servers", genrm_servers=2 * layout.genrm_servers),
        "learner": changed(
            "a learner twice as fast",
            step_s=layout.step_s / 2,
            reference_s=layout.reference_s / 2,
            push_s=layout.push_s / 2,
        ),
        "lag": changed(f"max_lag {layout.max_lag + 1}", max_lag=layout.max_lag + 1),
        "batch": changed(
            f"{2 * layout.per_step} completions a step", prompts=2 * layout.prompts, step_s=2 * layout.step_s
        ),
    }
    split = best_split(layout, settings.rollout_tensor_parallel_size, settings.judge_tensor_parallel_size)
    if split != (layout.replicas, layout.genrm_servers):
        name = f"{split[0]} replicas and {split[1]} GenRM servers on the GPUs of now"
        found["split"] = changed(name, replicas=split[0], genrm_servers=split[1])
    return found


def best_split(layout: Layout, gpus_per_replica: int, gpus_per_judge: int) -> tuple[int, int]:
    """(replicas, GenRM servers) on the GPUs that they have now, so that the slower of the two is as fast as can be."""
    gpus = layout.replicas * gpus_per_replica + layout.genrm_servers * gpus_per_judge
    best = (layout.replicas, layout.genrm_servers)
    for servers in range(1, gpus // gpus_per_judge + 1):
        replicas = (gpus - servers * gpus_per_judge) // gpus_per_replica
        if replicas and _slower(layout, (replicas, servers)) < _slower(layout, best):
            best = (replicas, servers)
    return best


def _slower(layout: Layout, split: tuple[int, int]) -> float:
    there = replace(layout, replicas=split[0], genrm_servers=split[1])
    return max(fleet_s(there), judge_s(there))


def capacity_lines(settings: RunSettings, rates: Rates) -> list[str]:
    """The lines that `--dry_run` adds to the plan.

    Raises:
        ConfigError: the rates leave something open.
    """
    layout = make_layout(settings, rates)
    parts, step_s = capacities(layout), expected_step_s(layout)
    held = (layout.max_lag + 1) * layout.per_step
    fleet = f"{layout.replicas} replicas x {layout.replica_slots} slots, {layout.completion.mean:.1f} s a completion"
    judge = (
        f"{layout.genrm_servers} servers x {layout.genrm_slots} slots, {layout.verdict.mean:.1f} s a verdict, "
        f"{layout.verdicts} a group"
    )
    learner = f"{learner_s(layout):.1f} s a step with its no-grad passes and push"
    in_flight = f"{held} episodes / {latency_s(layout):.0f} s from admission until their weights are live"

    def line(name: str, detail: str, used_s: float | None) -> str:
        use = f"; {used_s / step_s:.0%} in use" if used_s is not None else ""
        return f"{name:16} {parts[name]:.0f} episodes an hour: {detail}{use}"

    hours = settings.num_steps * step_s / HOUR_S
    verdicts = settings.num_steps * layout.prompts * layout.verdicts
    tokens = f", {verdicts * layout.verdict_tokens / 1e6:.3g} M judge tokens" if layout.verdict_tokens else ""
    return [
        line("fleet", fleet, fleet_s(layout)),
        line("judge", judge, judge_s(layout)),
        line("learner", learner, learner_s(layout)),
        line("in flight", in_flight, None),
        f"expected         {expected_episodes(layout):.0f} episodes an hour, {step_s:.1f} s a step",
        *_verdict_on(layout, settings, parts),
        f"whole run        {hours:.1f} hours, {verdicts} verdicts{tokens}",
    ]


def _verdict_on(layout: Layout, settings: RunSettings, parts: dict[str, float]) -> list[str]:
    """The bottleneck, and what would help."""
    found = alternatives(layout, settings)
    least = min(parts, key=parts.__getitem__)
    servers_help = max(found["fleet"].gain, found["judge"].gain) >= NOTHING
    if least == "learner" and expected_episodes(layout) > (1 - NOTHING) * parts["learner"]:
        name = "the learner; adding servers changes nothing"
    elif not servers_help:
        name = "latency: every step waits for its slowest groups, and adding servers changes nothing"
    elif least == "in flight":
        name = "latency, for the most part: a step waits for its slowest groups"
    else:
        name = f"the {least}"
    helpful = sorted((a for a in found.values() if a.gain >= NOTHING), key=lambda a: -a.gain)
    useless = [a.name for a in found.values() if a.gain < NOTHING]
    return [
        f"bottleneck       {name}",
        f"would help       {'; '.join(f'{a.name}: {a.gain:+.0%}' for a in helpful) or 'nothing of what was tried'}",
        *([f"would not help   {'; '.join(useless)}"] if useless else []),
    ]
