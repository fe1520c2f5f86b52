"""A step of a run made once more: the recorded groups, on a learner that goes on from a checkpoint.

    checkpoint 118 --step 119--> --step 120-->      each compared with the ledger: loss, gradient norm, KL, advantages

The learner is the run's own (Ray, DeepSpeed, as many ranks), and the batch is cut as it was, unless it was begun early:
then the sums come in another order. Tokens, sampled log-probs and advantages come from the ledger; the prompts' tokens
from the data set. A group's KL is compared where the ledger says that it was measured by the very weights that are
there again; other groups' was measured by older ones.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from trainer.audit_sums import reckoned
from trainer.batch import MiniBatch, Sample, build_batch
from trainer.checkpoint import NAME
from trainer.collect import Logprobs
from trainer.config import RunSettings
from trainer.environment import prepare_embedded_ray
from trainer.material import training_material
from trainer.prompts import Prompt, PromptStream
from trainer.record import Record, RecordedGroup
from trainer.stats import StepStats
from trainer.supervisor import Supervised
from wire.errors import ConfigError
from wire.generation import Completion, PolicyVersion


class Stepper(Protocol):
    """The learner as a step sees it; `trainer.ranks.Learner` is the real one."""

    async def reference(self, samples: Sequence[Sample]) -> list[Logprobs]: ...

    async def step(self, batch: Sequence[Sequence[MiniBatch]]) -> StepStats: ...


class Restorable(Stepper, Protocol):
    """The learner as a replay sees it."""

    async def load(self, folder: str) -> None: ...


@dataclass(frozen=True)
class KeptGroup:
    """A group whose completions are still there. K: its completions."""

    recorded: RecordedGroup
    prompt: Prompt
    completions: Sequence[Completion]

    @property
    def samples_K(self) -> list[Sample]:
        """All of them, with the recorded advantages."""
        advantages = self.recorded.known["advantages"]
        return [
            Sample(self.prompt.token_ids, c.token_ids, c.logprobs, advantage or 0.0)
            for c, advantage in zip(self.completions, advantages, strict=True)
        ]

    @property
    def trained(self) -> list[Sample]:
        """Those that were trained on."""
        rows = zip(self.samples_K, self.recorded.known["advantages"], strict=True)
        return [sample for sample, advantage in rows if advantage is not None]


@dataclass(frozen=True)
class Comparison:
    """`scale`: the size by which the largest `difference` counts."""

    what: str
    difference: float
    scale: float
    detail: str
    is_compared: bool = True

    def line(self, step: str, tolerance: float) -> str:
        """For a person."""
        verdict = ("same" if self.agrees(tolerance) else "DIFFERS") if self.is_compared else "not compared"
        return f"step {step}, {self.what}: {verdict} ({self.detail})"

    def agrees(self, tolerance: float) -> bool:
        """Whether it is no more than rounding; NaN is more."""
        return self.difference <= tolerance * self.scale


def checkpoints_of(record: Record, folder: Path) -> dict[int, Path]:
    """The kept checkpoints of the surviving lineage, by step."""
    found: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        with suppress(OSError, ValueError, KeyError):
            state = json.loads((path / "state.json").read_text())
            version = PolicyVersion(state["lineage"], state["step"])
            if NAME.fullmatch(path.name) and record.surviving.lineage.holds(version):
                found[version.step] = path
    return found


def replayable(record: Record, starts: Sequence[int]) -> dict[int, int]:
    """The steps that can be made once more, and for each the nearest step of `starts` that it can go on from."""
    whole = {v.step: all(_has_completions(record, g) for g in record.groups_of(v)) for v in record.surviving.steps}
    found: dict[int, int] = {}
    for start in sorted(starts):
        step = start + 1
        while whole.get(step, False):
            found[step] = start
            step += 1
    return found


def _has_completions(record: Record, group: RecordedGroup) -> bool:
    return group.numbers is not None and set(range(group.num_completions)) <= set(record.completions(group.occurrence))


@dataclass(frozen=True)
class Plan:
    """What a replay makes once more: `kept`, the groups of each step, on what `checkpoint` holds (None: the untrained
    policy)."""

    settings: RunSettings
    checkpoint: Path | None
    kept: Mapping[PolicyVersion, Sequence[KeptGroup]]

    @classmethod
    def of(cls, record: Record, folder: Path, step: int) -> Plan:
        """Up to `step` from the nearest checkpoint in the run's folder.

        Raises:
            ConfigError: no checkpoint before it is kept together with all completions since.
        """
        checkpoints = checkpoints_of(record, folder)
        start = _start(record, step, checkpoints)
        versions = [version for version in record.surviving.steps if start < version.step <= step]
        settings = record.settings_of(versions[-1])
        if settings is None:
            raise ConfigError(f"the ledger does not have the settings under which step {step} was made")
        prompts = training_material(settings).prompts
        kept = {version: _kept_groups(record, version, prompts) for version in versions}
        return cls(settings, checkpoints.get(start), kept)


def replay_lines(record: Record, folder: Path, step: int, tolerance: float) -> tuple[list[str], bool]:
    """Replay a step; returns a line for each thing compared, and whether all agree.

    Raises:
        ConfigError: no checkpoint before it is kept together with all completions since.
        ServiceError: the learner failed.
    """
    plan = Plan.of(record, folder, step)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not plan.settings.ray_address:
        prepare_embedded_ray()
    with Supervised():
        found = asyncio.run(_on_ray(record, plan))
    origin = f"from {plan.checkpoint}" if plan.checkpoint else "from the untrained policy"
    lines = [f"replayed {_ranges([v.step for v in plan.kept])} {origin}; tolerance {tolerance:g}"]
    for version, comparisons in found.items():
        lines += [comparison.line(version.label, tolerance) for comparison in comparisons]
    return lines, all(c.agrees(tolerance) for comparisons in found.values() for c in comparisons)


def _start(record: Record, step: int, checkpoints: dict[int, Path]) -> int:
    """The step to go on from; 0 is the untrained policy."""
    possible = replayable(record, [0, *checkpoints])
    if step not in possible:
        raise ConfigError(
            f"step {step} cannot be replayed: that takes a checkpoint before it and all completions since, which are "
            f"pruned behind the oldest checkpoint. What can be: {_ranges(list(possible)) or 'none'} "
            f"(kept checkpoints: {', '.join(map(str, sorted(checkpoints))) or 'none'}; save_steps and save_total_limit "
            "decide what is kept: with 1 and N, the last N - 1 steps can be replayed one by one)"
        )
    return possible[step]


def _ranges(steps: Sequence[int]) -> str:
    """`steps 3 to 5, 9`."""
    runs: list[list[int]] = []
    for step in sorted(steps):
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
    return f"step{'s' if len(steps) > 1 else ''} {words}" if words else ""


def _kept_groups(record: Record, version: PolicyVersion, prompts: Sequence[Prompt]) -> list[KeptGroup]:
    settings = record.settings_of(version)
    stream = PromptStream(prompts, settings.seed if settings else 0)
    kept = []
    for group in record.groups_of(version):
        stream.seek(group.occurrence)
        rows = record.completions(group.occurrence)
        try:
            completions = [rows[k].completion for k in range(group.num_completions)]
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{group.name}: its completions cannot be read ({error}): see the audit without --step"
            ) from error
        kept.append(KeptGroup(group, next(stream), completions))
    return kept


async def _on_ray(record: Record, plan: Plan) -> dict[PolicyVersion, list[Comparison]]:
    # They import Ray, which must find its environment prepared.
    from trainer.placement import place_learner, ray_cluster
    from trainer.ranks import Learner

    with ray_cluster(plan.settings):
        ranks, meeting_host = await place_learner(plan.settings, partial(print, file=sys.stderr))
        learner = Learner(ranks, plan.settings)
        try:
            await learner.setup(meeting_host)
            return await replayed(record, plan, learner)
        finally:
            await learner.close()


async def replayed(record: Record, plan: Plan, learner: Restorable) -> dict[PolicyVersion, list[Comparison]]:
    """Restore the learner, which is up, make the plan's steps, and compare each with its record."""
    recorded = record.step_numbers()
    if plan.checkpoint is not None:
        await learner.load(str(plan.checkpoint.absolute()))
    return {
        version: await compared(learner, version, groups, recorded[version] or {}, plan.settings)
        for version, groups in plan.kept.items()
    }


async def compared(
    learner: Stepper,
    version: PolicyVersion,
    groups: Sequence[KeptGroup],
    numbers: Mapping[str, Any],
    settings: RunSettings,
) -> list[Comparison]:
    """Make `version` of the groups once more, and compare.

    Args:
        learner: holds the weights before it.
        version: the one to make.
        groups: in their order.
        numbers: what the ledger says of the learner's.
        settings: the run's.
    """
    fresh = [group for group in groups if _is_fresh(group, version)]
    passes = [[group] for group in fresh] if settings.deterministic else [fresh] if fresh else []
    logprobs = [row for part in passes for row in await learner.reference([s for g in part for s in g.samples_K])]
    rows = iter(logprobs)
    kl = {id(g): [sum(own) - sum(reference) for own, reference in islice(rows, len(g.completions))] for g in fresh}
    stats = await learner.step(
        build_batch(
            [sample for group in groups for sample in group.trained],
            num_ranks=settings.num_learner_ranks,
            num_mini_batches=settings.num_mini_batches,
            token_budget=settings.microbatch_tokens,
            denominator=settings.loss_denominator,
        )
    )
    return [
        _number("loss", numbers.get("loss"), stats.loss, at_least=_mean_size(groups)),
        _number("gradient norm", numbers.get("grad_norm"), stats.grad_norm),
        _kl(fresh, kl, len(groups), max((sum(map(abs, own)) for own, _ in logprobs), default=0.0)),
        _advantages(groups, kl, settings),
    ]


def _is_fresh(group: KeptGroup, version: PolicyVersion) -> bool:
    """Whether its KL was measured by the very weights that the step started from."""
    scored_by = group.recorded.known["scored_by"]
    return scored_by is not None and PolicyVersion.parse(scored_by).step == version.step - 1


def _mean_size(groups: Sequence[KeptGroup]) -> float:
    """Of the advantages. They sum to 0, and so does a loss at its start: its size says nothing of its rounding."""
    sizes = [abs(sample.advantage) for group in groups for sample in group.trained]
    return sum(sizes) / len(sizes) if sizes else 0.0


def _number(what: str, then: float | None, now: float, at_least: float = 0.0) -> Comparison:
    if then is None:
        return Comparison(what, math.nan, 0.0, f"{now:.9g} now, and nothing can be read in the ledger")
    return Comparison(what, abs(now - then), max(abs(now), abs(then), at_least), f"{then:.9g} then, {now:.9g} now")


def _kl(fresh: Sequence[KeptGroup], kl: Mapping[int, Sequence[float]], num: int, scale: float) -> Comparison:
    pairs = [pair for g in fresh for pair in zip(g.recorded.known["kl"], kl[id(g)], strict=True)]
    largest = max((abs(then - now) for then, now in pairs), default=0.0)
    older = num - len(fresh)
    others = f"; that of {older} was measured by older weights" if older else ""
    return Comparison("KL", largest, scale, f"of {len(fresh)} groups, by {largest:.3g} nats{others}", len(fresh) > 0)


def _advantages(groups: Sequence[KeptGroup], kl: Mapping[int, Sequence[float]], settings: RunSettings) -> Comparison:
    """The recorded ones against those that the KL measured now gives, or the recorded KL where it is not measured."""
    recorded = [group.recorded for group in groups]
    found = reckoned(recorded, settings, [kl.get(id(g), g.recorded.known["kl"]) for g in groups])
    rows = zip(recorded, found, strict=True)
    pairs = [pair for g, now in rows for pair in zip(g.known["advantages"], now.advantages_K, strict=True)]
    known = [(then, now) for then, now in pairs if then is not None and now is not None]
    largest = max((abs(then - now) for then, now in known), default=0.0)
    if any((then is None) != (now is None) for then, now in pairs):
        largest = math.inf
    return Comparison("advantages", largest, max((abs(then) for then, _ in known), default=0.0), f"by {largest:.3g}")
