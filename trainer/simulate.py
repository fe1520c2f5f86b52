"""`python -m trainer.main --config FILE --simulate RATES`: the run's own driver over stand-ins, on a virtual clock.

Real are the loop, the pipeline, the collector, the client's choice of replicas, the pairing, the fleet's pushes and the
driver's end of the learner. Replicas, GenRM servers and learner ranks are stand-ins that take the time which the rates
give them (`trainer.stand_ins`, `trainer.stand_in_rank`). There is no model, no data set, no Ray and no socket, so hours
of a large cluster pass in seconds of a laptop. Nothing is known of what breaks in a real run: no server is lost and no
verdict is missing.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from trainer.bar import progress_bar
from trainer.collect import Collector
from trainer.config import RunSettings
from trainer.contest import Contest
from trainer.group import Group
from trainer.loop import train
from trainer.prompts import Prompt, PromptStream
from trainer.ranks import Learner
from trainer.rates import Layout, Rates, make_layout
from trainer.stand_in_rank import SimulatedRank
from trainer.stand_ins import SimulatedFleet, SimulatedJudge, SimulatedLedger, SimulatedRollouts
from trainer.stats import StepStats
from trainer.virtual_clock import VirtualClockLoop
from wire.generation import PolicyVersion
from wire.waits import WAITS, Wait

PROMPT = Prompt(0, ({"role": "user", "content": ""},), (1,))
WORST_WAITS = 8  # kinds of waits that the report names

Instrument = Callable[[RunSettings], AbstractContextManager[object]]  # open while the run lasts, on its clock


def simulate(
    settings: RunSettings, rates: Rates, *, steps: int, instrument: Instrument = lambda _: nullcontext()
) -> dict[str, Any]:
    """Run `steps` steps on a virtual clock; returns the summary.

    Args:
        settings: the run's.
        rates: of the parts.
        steps: how many; the first few, until the pipeline is in its stride, do not count in the rates.
        instrument: opened around the run, on the virtual clock; listens to `wire.waits`, such as the trace does.

    Raises:
        ConfigError: the rates leave something open.
        ServiceError: the driver gave up, as it would in the real run: a deadline is shorter than its work takes.
    """
    layout = make_layout(settings, rates)
    settings = replace(settings, total_episodes=steps * settings.completions_per_step)
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(_Simulation(settings, layout).go(instrument))


def warm_steps(max_lag: int, steps: int) -> int:
    """Steps until the pipeline is in its stride: the first batches find all servers idle."""
    return min(2 * (max_lag + 1) + 1, steps // 2)


class _Simulation:
    """One run. It is the loop's journal too."""

    def __init__(self, settings: RunSettings, layout: Layout) -> None:
        self._settings, self._layout = settings, layout
        self._fleet = SimulatedFleet(settings, layout)
        self._judge, self._ledger = SimulatedJudge(settings, layout), SimulatedLedger()
        self._ranks = [SimulatedRank(layout, self._fleet.load) for _ in range(layout.ranks)]
        self._learner = Learner(self._ranks, settings)
        self._live = PolicyVersion(0, 0)
        self._warm = warm_steps(layout.max_lag, settings.num_steps)
        self._seconds: dict[str, float] = defaultdict(float)
        self._waits: dict[tuple[str, str, str], float] = defaultdict(float)
        self._lags: list[int] = []
        self._episodes = self._verdicts = 0
        self._evaluated_within: list[int] = []  # steps that each evaluation took
        self._evaluations: dict[str, Any] = {}
        self._judge_tokens = 0
        self._at_start: dict[str, float] = {}

    async def go(self, instrument: Instrument) -> dict[str, Any]:
        settings, began = self._settings, time.perf_counter()
        await self._learner.setup("")
        with instrument(settings), WAITS.heard_by(self._hear):
            async with SimulatedRollouts(self._fleet, settings, self._layout) as rollouts:
                collector = Collector(
                    settings,
                    rollouts,
                    self._judge,
                    self._learner,
                    decode=lambda ids: str(ids[0]),
                    version=lambda: self._live,
                    learner_version=lambda: self._learner.version,
                    ledger=self._ledger,
                )
                await self._publish(self._live)
                async with self._contest_over(rollouts) as contest:
                    await contest.meet()
                    self._mark()
                    with progress_bar(
                        total=settings.num_steps, desc="simulation", unit="step", leave=False
                    ) as self._bar:
                        await self._train(collector, contest)
                    steps = self._evaluated_within
                    self._evaluations = {"finished": len(steps), "skipped": contest.num_skipped, "steps": steps}
        return self._summary() | {"real_seconds": round(time.perf_counter() - began, 1)}

    def _contest_over(self, rollouts: SimulatedRollouts) -> Contest:
        return Contest(
            self._settings,
            [replace(PROMPT, occurrence=number) for number in range(self._settings.num_eval_prompts)],
            rollouts,
            [self._judge],
            decode=lambda ids: str(ids[0]),
            stop_token_ids=(),
            version=lambda: self._live,
            say=tqdm.write,
        )

    async def _train(self, collect: Callable[[Prompt, int], Awaitable[Group]], contest: Contest) -> None:
        async def step_done(version: PolicyVersion, _: object) -> None:
            contest.begin_if_due(version.step)
            if began := contest.metrics().get("eval/step"):
                self._evaluated_within.append(version.step - round(began))

        await train(
            self._settings,
            version=self._live,
            prompts=PromptStream([PROMPT], self._settings.seed),
            collect=collect,
            inspect=lambda groups: None,
            learner=self._learner,
            publish=self._publish,
            checkpoint=step_done,
            ledger=self._ledger,
            journal=self,
        )

    async def _publish(self, version: PolicyVersion) -> None:
        await self._fleet.publish(self._learner, version)
        self._live = version

    # --- as the loop's journal

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the block's seconds."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            yield
        finally:
            self._seconds[stage] += clock() - began

    def record(
        self,
        version: PolicyVersion,
        groups: Sequence[Group],
        stats: StepStats,
        *,
        lags: Sequence[int],
        num_dropped: int,
    ) -> None:
        """Take note of a step."""
        self._episodes += sum(len(group.completions) for group in groups)
        verdicts = [placed.verdict for group in groups for placed in group.verdict.verdicts]
        self._verdicts += len(verdicts)
        self._judge_tokens += sum(verdict.completion_tokens for verdict in verdicts)
        self._lags += lags
        self._bar.update()
        if version.step == self._warm:
            self._mark()

    # --- what came of it

    def _hear(self, wait: Wait, end: float) -> None:
        kind = (wait.who.partition(" ")[0], wait.peer.partition(" ")[0], wait.reason)
        self._waits[kind] += end - max(wait.since, self._at_start.get("time", 0.0))

    def _totals(self) -> dict[str, float]:
        replicas = self._fleet.replicas.values()
        return {
            "time": asyncio.get_running_loop().time(),
            "episodes": float(self._episodes),
            "verdicts": float(self._verdicts),
            "judge_tokens": float(self._judge_tokens),
            "fleet": sum(replica.meter.slots_s for replica in replicas) / self._layout.writing,
            "judge": sum(meter.slots_s for meter in self._judge.meters) / self._layout.judging,
            "learner": self._ranks[0].meter.any_s,
            **{name: meter.any_s for name, meter in self._ranks[0].meters.items()},
            **{f"driver {stage}": seconds for stage, seconds in self._seconds.items()},
        }

    def _mark(self) -> None:
        """What comes now counts."""
        self._at_start = self._totals()
        self._waits.clear()

    def _summary(self) -> dict[str, Any]:
        now = self._totals()
        grown = {name: value - self._at_start.get(name, 0.0) for name, value in now.items()}
        seconds = grown["time"]
        waits = sorted(self._waits.items(), key=lambda item: -item[1])[:WORST_WAITS]
        return {
            "steps": self._settings.num_steps,
            "steps_counted": self._settings.num_steps - self._warm,
            "seconds": seconds,
            "seconds_per_step": seconds / (self._settings.num_steps - self._warm),
            "episodes_per_second": grown["episodes"] / seconds,
            "verdicts_per_second": grown["verdicts"] / seconds,
            "judge_tokens_per_second": grown["judge_tokens"] / seconds,
            "utilisation": {
                "fleet": grown["fleet"] / seconds,
                "judge": grown["judge"] / seconds,
                "learner": grown["learner"] / seconds,
            },
            "learner": {name: grown[name] / seconds for name in ("step", "reference", "push")},
            "driver": {
                name.partition(" ")[2]: value / seconds for name, value in grown.items() if name.startswith("driver ")
            },
            "evaluations": self._evaluations,
            "lag_mean": sum(self._lags) / len(self._lags),
            "waits": {f"{who} waits for {peer}: {reason}": total for (who, peer, reason), total in waits},
        }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """For people."""
    busy, driver = summary["utilisation"], summary["driver"]

    def shares(parts: dict[str, float]) -> str:
        return ", ".join(f"{name} {share:.0%}" for name, share in parts.items())

    return [
        f"simulated        {summary['steps_counted']} steps of {summary['seconds_per_step']:.1f} s "
        f"({summary['seconds'] / 3600:.1f} h) in {summary['real_seconds']:.0f} s; mean lag {summary['lag_mean']:.2f}",
        f"episodes         {3600 * summary['episodes_per_second']:.0f} an hour, "
        f"{3600 * summary['verdicts_per_second']:.0f} verdicts an hour",
        f"in use           {shares(busy)} (steps {summary['learner']['step']:.0%}, "
        f"no-grad passes {summary['learner']['reference']:.0%}, pushes {summary['learner']['push']:.0%})",
        f"driver           {shares(driver)}",
        *(f"waits            {name}: {total / 3600:.1f} h in all" for name, total in summary["waits"].items()),
    ]
