"""`python -m benchmarks.goodput`: how much of what a preempted fleet could write is trained on.

A third of the replicas is taken away at once, again and again, and each comes back after a time of its own. The real
driver code runs over them: loop, pipeline, collector, client, fleet, the learner's and the push's control traffic.
Stand-ins are the replicas (real HTTP, `benchmarks/standin_replica.py`), the judge, and the learner's ranks: they take
their time and compute nothing. All times are those of a real run divided by `--scale`; the clock is real.

    goodput           completions trained on, over what the replicas that were there could have written: their slots,
                      times the seconds they were there, over the mean seconds that a trained completion takes on an
                      engine that never stands still. One is there from its answering again to its being cut off; so
                      noticing it, its catching up, pauses for pushes, what was lost half written and slots without
                      work all count as losses. From one step's end to another's, the first few left out.
    recovery_p95_s    95th percentile, in seconds of a real run, of the time from a replica's being given back (it
                      answers) until the driver holds the first completion that it wrote, with the live version alone.
                      A completion's own time is part of it.
    reroute_p95_s     in the details: from a loss until each prompt that the lost one was writing is with another
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from benchmarks.preemption import Absence, make_trace, percentile, present_seconds
from benchmarks.standin_fleet import StandInFleet
from benchmarks.standin_services import StandInJudge, StandInRank
from rollout_server.client import CompletionFutures, RolloutClient, Sampling
from rollout_server.fleet import Fleet
from rollout_server.membership import Replica
from trainer.collect import Collector
from trainer.config import RunSettings
from trainer.group import Group
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


def arguments() -> argparse.Namespace:
    """The flags. Seconds are a real run's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--scale", type=float, default=12.0, help="Divides every time.")
    add("--duration_s", type=float, default=1440.0, help="Length of the run.")
    add("--replicas", type=int, default=12, help="Replicas.")
    add("--slots", type=int, default=16, help="Completions that a replica writes at once.")
    add("--completion_s", type=float, default=20.0, help="Mean seconds of a completion.")
    add("--mean_tokens", type=float, default=200.0, help="Mean tokens of a completion: what is sent, not how long.")
    add("--spread", type=float, default=0.5, help="Sigma of the log-normal of the lengths.")
    add("--judge_s", type=float, default=20.0, help="Median seconds of a verdict.")
    add("--reference_s", type=float, default=0.5, help="Seconds of a reference pass.")
    add("--step_s", type=float, default=20.0, help="Seconds of a step.")
    add("--open_s", type=float, default=0.7, help="Seconds until a transfer group is open.")
    add("--load_s", type=float, default=0.7, help="Seconds until weights are received and loaded.")
    add("--prompts_per_step", type=int, default=128, help="Prompts of a step.")
    add("--max_lag", type=int, default=4, help="As the run's flag.")
    add("--share", type=float, default=1 / 3, help="Share of the fleet that a wave takes; 0: none.")
    add("--every_s", type=float, default=360.0, help="Mean seconds between waves.")
    add("--away_s", type=float, default=120.0, help="Mean seconds away, its start included.")
    add("--seed", type=int, default=1, help="Of the trace.")
    return parser.parse_args()


def run_settings(flags: argparse.Namespace) -> RunSettings:
    """The run's settings, their times scaled."""
    k = 4
    return RunSettings(
        device="cpu",
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
        self.totals: defaultdict[str, float] = defaultdict(float)  # of the run so far
        self.at_start: defaultdict[str, float] = defaultdict(float)  # the same at the beginning of the window that counts
        self.at_end: defaultdict[str, float] = defaultdict(float)  # and at its end
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

    def __init__(self, recorder: Recorder, fleet: Fleet, sampling: Sampling, settings: RunSettings) -> None:
        super().__init__(fleet, TOKEN, sampling, settings.rollout_timeout_s, room=settings.rollout_max_num_seqs)
        self._recorder = recorder
        self._lost: dict[int, float] = {}  # when a prompt's replica failed it, by the prompt's seed

    async def _try(
        self, replica: Replica, futures: CompletionFutures, token_ids: Sequence[int], seed: int, salt: str
    ) -> Exception | None:
        lost = self._lost.pop(seed, None)
        if lost is not None:
            self._recorder.reroutes.append(time.monotonic() - lost)
        for future in futures:
            if not future.done():
                future.add_done_callback(self._note)
        problem = await super()._try(replica, futures, token_ids, seed, salt)
        if problem is not None:
            self._lost[seed] = time.monotonic()
        return problem

    def _note(self, done: asyncio.Future[Completion]) -> None:
        if not done.cancelled() and done.exception() is None:
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
    settings, scale = run_settings(flags), flags.scale
    learner = Learner(
        [StandInRank(TOKEN, step_s=flags.step_s / scale, reference_s=flags.reference_s / scale)], settings
    )
    await learner.setup("127.0.0.1")
    sampling = Sampling(settings.response_length, settings.temperature, (STOP_TOKEN,))
    preemption, live = Preemption(standins, recorder), PolicyVersion(0, 0)
    async with (
        Fleet(settings, TOKEN) as fleet,
        WatchedClient(recorder, fleet, sampling, settings) as rollouts,
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
                journal=recorder,
            ),
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(flags.duration_s / scale):
                await asyncio.gather(*work)
        return preemption


async def measure(flags: argparse.Namespace) -> dict[str, float]:
    """Both figures."""
    scale, recorder = flags.scale, Recorder()
    trace = make_trace(
        flags.replicas,
        flags.duration_s / scale,
        share=flags.share,
        every_s=flags.every_s / scale,
        away_s=flags.away_s / scale,
        seed=flags.seed,
    )
    token_s = flags.completion_s / flags.mean_tokens / scale
    standins = StandInFleet(
        flags.replicas,
        slots=flags.slots,
        mean_tokens=flags.mean_tokens,
        spread=flags.spread,
        token_s=token_s,
        open_s=flags.open_s / scale,
        load_s=flags.load_s / scale,
    )
    cpu, began = time.process_time(), time.monotonic()
    async with standins:
        preemption = await run_for(flags, standins, recorder, trace)
    cores = (time.process_time() - cpu) / (time.monotonic() - began)
    start, end, grew = recorder.at_start["time"], recorder.at_end["time"], recorder.in_window
    there_s = present_seconds(flags.replicas, preemption.away, start, end)
    completion_s = token_s * grew("tokens") / grew("completions")
    goodput = grew("completions") * completion_s / (there_s * flags.slots)
    show(
        window_s=(end - start) * scale,
        steps=recorder.num_steps - WARM_STEPS,
        completions=grew("completions"),
        completion_s=completion_s * scale,
        there=there_s / (end - start) / flags.replicas,
        losses=grew("losses"),
        joins=grew("joins"),
        rerouted_prompts=grew("rerouted_prompts"),
        retries=grew("retries"),
        driver_cores=cores,
    )
    discarded, paused = grew("tokens_discarded") * token_s / flags.slots / there_s, grew("paused") / there_s
    show(discarded=discarded, paused=paused, rest=1 - goodput - discarded - paused)
    show(**{stage: grew(stage) / (end - start) for stage in ("wait", "step", "publish")})
    show(
        recoveries=len(recorder.recoveries),
        recovery_p50_s=percentile(recorder.recoveries, 0.5) * scale,
        reroutes=len(recorder.reroutes),
        reroute_p50_s=percentile(recorder.reroutes, 0.5) * scale,
        reroute_p95_s=percentile(recorder.reroutes, 0.95) * scale,
    )
    return {"goodput": goodput, "recovery_p95_s": percentile(recorder.recoveries, 0.95) * scale}


def show(**figures: float) -> None:
    """One line of detail."""
    print("  ".join(f"{name} {float(f'{value:.4g}'):g}" for name, value in figures.items()), flush=True)


def main() -> None:
    """Measure and print; the last line is JSON."""
    flags = arguments()
    with asyncio.Runner() as runner:
        figures = runner.run(measure(flags))
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
