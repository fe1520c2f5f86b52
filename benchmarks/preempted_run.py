"""A run over stand-in replicas that are taken away and given back, and what happened in it.

The driver's code is the real one; see `benchmarks/goodput.py` for what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from benchmarks.preemption import Absence
from benchmarks.standin_fleet import StandInFleet
from benchmarks.standin_services import StandInJudge, StandInRank
from rollout_server.client import CompletionFutures, Order, RolloutClient, Sampling
from rollout_server.fleet import Fleet
from rollout_server.membership import Replica
from trainer.collect import Collector
from trainer.config import RunSettings
from trainer.group import Group
from trainer.ledger import Ledger
from trainer.loop import train
from trainer.prompts import Prompt, PromptStream
from trainer.ranks import Learner
from trainer.stats import StepStats
from wire.generation import Completion, PolicyVersion

TOKEN = "benchmark"
WARM_STEPS = 3  # until the pipeline is in its stride
STOP_TOKEN = 2
PROMPT = ({"role": "user", "content": "what is the sea?"},)
LEAST_PROBE_TIMEOUT_S = 5.0  # not scaled: who is cut off refuses, nobody freezes here
Totals = defaultdict[str, float]


def run_settings(flags: argparse.Namespace, folder: str) -> RunSettings:
    """The run's settings, their times scaled; it writes into `folder`."""
    k = 4
    return RunSettings(
        device="cpu",
        output_dir=folder,
        rloo_k=k,
        per_device_train_batch_size=k,
        gradient_accumulation_steps=flags.prompts_per_step,
        total_episodes=10**9,
        max_lag=flags.max_lag,
        rollout_max_num_seqs=flags.slots,
        response_length=3 * int(flags.mean_tokens),
        probe_interval_s=RunSettings.probe_interval_s / flags.scale,
        probe_timeout_s=max(LEAST_PROBE_TIMEOUT_S, RunSettings.probe_timeout_s / flags.scale),
    )


class Recorder:
    """What happened, by the monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.totals: Totals = defaultdict(float)  # of the run so far
        self.at_start: Totals = defaultdict(float)  # the same at the beginning of the window that counts
        self.at_end: Totals = defaultdict(float)  # and at its end
        self.fleet: Fleet | None = None
        self.given: dict[str, float] = {}  # replicas from which no completion has come since they were given back
        self.recoveries: list[float] = []
        self.reroutes: list[float] = []

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """As the journal's."""
        started = time.monotonic()
        yield
        self.totals[stage] += time.monotonic() - started

    def record(
        self,
        version: PolicyVersion,
        groups: Sequence[Group],
        stats: StepStats,
        *,
        lags: Sequence[int],
        num_dropped: int,
    ) -> None:
        """As the journal's."""
        assert self.fleet is not None
        completions = [completion for group in groups for completion in group.completions]
        self.num_steps += 1
        self.totals["completions"] += len(completions)
        self.totals["tokens"] += sum(len(completion.token_ids) for completion in completions)
        seen = self.totals.copy()
        seen.update(self.fleet.membership.counts)
        seen["time"] = time.monotonic()
        seen["paused"] = sum(replica.paused_s for replica in self.fleet.membership.replicas)
        self.at_end = seen
        if self.num_steps == WARM_STEPS:
            self.at_start = seen

    def in_window(self, name: str) -> float:
        """By how much a total grew in the window that counts."""
        return self.at_end[name] - self.at_start[name]


class WatchedClient(RolloutClient):
    """Notes each replica's first completion after it was given back, and when a lost one's prompts are with others."""

    def __init__(self, recorder: Recorder, fleet: Fleet, sampling: Sampling, settings: RunSettings, room: int) -> None:
        super().__init__(fleet, TOKEN, sampling, settings.rollout_timeout_s, room=room)
        self._recorder = recorder
        self._lost: dict[int, float] = {}  # when a prompt's replica failed it, by the prompt's seed

    async def _try(self, replica: Replica, futures: CompletionFutures, order: Order) -> Exception | None:
        lost = self._lost.pop(order.seed, None)
        if lost is not None:
            self._recorder.reroutes.append(time.monotonic() - lost)
        missing = [future for future in futures if not future.done()]
        for future in missing:
            future.add_done_callback(self._note)
        problem = await super()._try(replica, futures, order)
        for future in missing:
            future.remove_done_callback(self._note)  # one that is done has called it, or is about to
        if problem is not None:
            self._lost[order.seed] = time.monotonic()
        return problem

    def _note(self, done: asyncio.Future[Completion]) -> None:
        if not done.cancelled() and done.exception() is None:
            self._recorder.totals["written"] += 1
            self._recorder.totals["written_tokens"] += len(done.result().token_ids)
            given = self._recorder.given.pop(done.result().replica, None)
            if given is not None:
                self._recorder.recoveries.append(time.monotonic() - given)


class Preemption:
    """Plays a trace to the replicas; `away` is when one was away, by the monotonic clock, one that is still away
    included."""

    def __init__(self, standins: StandInFleet, recorder: Recorder) -> None:
        self._standins, self._recorder = standins, recorder
        self._gone: dict[int, float] = {}
        self._intervals: list[tuple[float, float]] = []

    @property
    def away(self) -> list[tuple[float, float]]:
        """Absences, beginning and end."""
        return [*self._intervals, *((gone, math.inf) for gone in self._gone.values())]

    async def play(self, trace: Sequence[Absence]) -> None:
        """Until the trace's end."""
        started = time.monotonic()

        async def absent(absence: Absence) -> None:
            await asyncio.sleep(started + absence.start - time.monotonic())
            url = self._standins.urls[absence.index]
            await self._standins.take(absence.index)
            self._gone[absence.index] = time.monotonic()
            self._recorder.given.pop(url, None)
            await asyncio.sleep(started + absence.end - time.monotonic())
            await self._standins.give(absence.index)
            self._recorder.given[url] = time.monotonic()
            self._intervals.append((self._gone.pop(absence.index), time.monotonic()))

        await asyncio.gather(*(absent(absence) for absence in trace))


async def run_for(
    flags: argparse.Namespace, standins: StandInFleet, recorder: Recorder, trace: Sequence[Absence]
) -> Preemption:
    """Train for the duration; what is measured is with the recorder."""
    with tempfile.TemporaryDirectory() as folder:
        return await _run_for(flags, run_settings(flags, folder), standins, recorder, trace)


async def _run_for(
    flags: argparse.Namespace,
    settings: RunSettings,
    standins: StandInFleet,
    recorder: Recorder,
    trace: Sequence[Absence],
) -> Preemption:
    scale = flags.scale
    learner = Learner(
        [StandInRank(TOKEN, step_s=flags.step_s / scale, reference_s=flags.reference_s / scale)], settings
    )
    await learner.setup("127.0.0.1")
    sampling = Sampling(settings.response_length, settings.temperature, (STOP_TOKEN,))
    room = 0 if flags.queue_at_replicas else settings.rollout_max_num_seqs
    preemption, live = Preemption(standins, recorder), PolicyVersion(0, 0)
    async with (
        Ledger.open(settings, None, print) as ledger,
        Fleet(settings, TOKEN) as fleet,
        WatchedClient(recorder, fleet, sampling, settings, room) as rollouts,
    ):
        recorder.fleet = fleet

        async def publish(version: PolicyVersion) -> None:
            nonlocal live
            await fleet.publish(learner, version)
            live = version

        async def nothing(*_: object) -> None:
            pass

        collector = Collector(
            settings,
            rollouts,
            StandInJudge(flags.judge_s / scale),
            learner,
            lambda ids: str(len(ids)),
            version=lambda: live,
            learner_version=lambda: learner.version,
            ledger=ledger,
        )
        for url in standins.urls:
            await fleet.add(url)
        await publish(live)
        work = [
            fleet.tend(),
            preemption.play(trace),
            train(
                settings,
                version=live,
                prompts=PromptStream([Prompt(0, PROMPT, (5, 6, 7))], seed=1),
                collect=collector,
                inspect=lambda groups: None,
                learner=learner,
                publish=publish,
                checkpoint=nothing,
                ledger=ledger,
                journal=recorder,
            ),
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(flags.duration_s / scale):
                await asyncio.gather(*work)
        return preemption
