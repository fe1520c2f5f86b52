"""One run from its first push to its summary, over services that are up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reward_server.check import check_judge
from rollout_server.client import RolloutClient, Sampling
from trainer.checkpoint import Checkpoints
from trainer.collect import Collector
from trainer.config import RunSettings
from trainer.contest import Contest
from trainer.evaluate import HeldOut, evaluate_held_out
from trainer.export import Exports
from trainer.first_done import first_done
from trainer.group import Group
from trainer.journal import Journal, open_trace, write_summary
from trainer.ledger import Ledger
from trainer.loop import train
from trainer.material import Material
from trainer.measured_rates import RATES_FILE, RateMeter
from trainer.numerics import NumericsGate
from trainer.pipeline import Pipeline
from trainer.prompts import PromptStream
from trainer.services import Services, running_services, second_judges
from trainer.status_file import StatusFile
from trainer.trace import Trace
from trainer.tripwires import Tripped, Tripwires
from trainer.watchdog import Watchdog
from wire.errors import ServiceError
from wire.generation import PolicyVersion
from wire.waits import WAITS


async def run(settings: RunSettings, material: Material, token: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Start or join the services, check the judge, train, and stop what was started; returns the summary.

    Raises:
        ConfigError: the judge is not fit.
        ServiceError: a part failed, the message carries its last words; or nothing moved for too long.
    """
    async with AsyncExitStack() as stack:
        status = await stack.enter_async_context(StatusFile(settings))
        say = status.hears(say)
        trace = stack.enter_context(open_trace(settings, goes_on=settings.resume_from_checkpoint is not None))
        watchdog = Watchdog(settings.stall_warn_s, settings.stall_stop_s, say)
        tasks = [
            asyncio.create_task(watchdog.watch()),
            asyncio.create_task(_serve_and_train(settings, material, token, say, status, trace)),
        ]
        return await first_done(tasks)


async def _serve_and_train(
    settings: RunSettings,
    material: Material,
    token: str,
    say: Callable[[str], None],
    status: StatusFile,
    trace: Trace,
) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with running_services(settings, token, say) as services:
        status.services = services
        work = Run(settings, material, token, services, say, status, trace)
        observe = asyncio.create_task(services.observe())
        try:
            return await first_done([asyncio.create_task(services.watch()), asyncio.create_task(work.go(started))])
        finally:
            observe.cancel()
            await asyncio.gather(observe, return_exceptions=True)


@dataclass(frozen=True)
class Done:
    """The last whole step, and what is used of the prompt stream: all before `next_prompt`, and `taken_ahead`."""

    version: PolicyVersion
    next_prompt: int
    taken_ahead: frozenset[int]


class Run:
    """The driver's own part: what is live, what is done, what is saved.

    Args:
        settings: the run's.
        material: prompts and tokenizer.
        token: the access token.
        services: the three parts.
        say: told what a person should know.
        status: told of the parts as they come up.
        trace: open.
    """

    def __init__(
        self,
        settings: RunSettings,
        material: Material,
        token: str,
        services: Services,
        say: Callable[[str], None],
        status: StatusFile,
        trace: Trace,
    ) -> None:
        self._settings, self._material, self._token, self._services = settings, material, token, services
        self._say, self._status, self._trace = say, status, trace
        self._checkpoints, self._exports = Checkpoints(settings), Exports(settings)
        self._meter = RateMeter(settings)
        self._tripwires = Tripwires(settings.warn_at, settings.stop_at, say)
        self._latest: Callable[[], Mapping[str, float]] = dict  # metrics of the last step
        self._live = PolicyVersion(0, 0)  # what the replicas hold
        self._done = Done(PolicyVersion(0, 0), 0, frozenset())
        self._first_step = 0
        self._before = HeldOut(None, None, 0, 0)  # of the held-out prompts, before training
        self._before_push: Callable[[], None] = lambda: None

    async def go(self, started: float) -> dict[str, Any]:
        """Check the judge, restore, push, evaluate, train, evaluate, export. `started`: by the loop's clock."""
        settings, material = self._settings, self._material
        if material.pairs:
            await check_judge(self._services.judge, settings, material.pairs, self._say)
        async with await self._restore() as ledger:
            with WAITS.heard_by(self._meter.hear):
                return await self._run(ledger, started)

    async def _run(self, ledger: Ledger, started: float) -> dict[str, Any]:
        settings, material = self._settings, self._material
        sampling = Sampling(settings.response_length, settings.temperature, material.stop_token_ids)
        fleet, judge, learner = self._services.fleet, self._services.judge, self._services.learner
        timeout_s, room = settings.rollout_timeout_s, settings.rollout_max_num_seqs
        least = settings.rloo_k if settings.adaptive_in_flight else 0
        async with (
            RolloutClient(fleet, self._token, sampling, timeout_s, room=room, least=least) as rollouts,
            self._contest_over(rollouts) as contest,
        ):
            collector = Collector(
                settings,
                rollouts,
                judge,
                learner,
                material.decode,
                version=lambda: self._live,
                learner_version=lambda: learner.version,
                ledger=ledger,
            )
            stops, waits = material.stop_token_ids, collector.slowest
            journal = Journal(
                settings,
                first_step=self._first_step,
                stop_token_ids=stops,
                waits=waits,
                services=lambda: (
                    collector.verdicts.drain()
                    | self._services.judge_metrics()
                    | fleet.metrics()
                    | ledger.metrics()
                    | contest.metrics()
                ),
                replicas=lambda: [f"replica {replica.url}" for replica in fleet.ready()],
                trace=self._trace,
            )
            self._status.stages = lambda: collector.num_at
            self._status.metrics = self._latest = lambda: journal.latest
            self._status.warnings = lambda: self._tripwires.warnings
            async with journal:
                journal.add_seconds("start", asyncio.get_running_loop().time() - started)
                with journal.timed("publish"):
                    await self._publish(self._done.version)
                with journal.timed("held_out"):
                    await contest.meet(Path(settings.output_dir))
                self._before = await self._held_out(collector, journal, "held-out, before")
                version = await self._train(collector, ledger, journal, contest)
                with journal.timed("held_out"):
                    await contest.finish(version.step)
                journal.note(version.step, contest.metrics())
                after = await self._held_out(collector, journal, "held-out, after")
                with journal.timed("export"):
                    await self._exports.save_final(learner)
                summary = self._summary(version, await fleet.versions(), after)
                return summary | contest.summary() | journal.summary()

    @asynccontextmanager
    async def _contest_over(self, rollouts: RolloutClient) -> AsyncIterator[Contest]:
        settings, material = self._settings, self._material
        if not settings.inflight_updates:
            self._before_push = rollouts.give_way
        async with (
            second_judges(settings, self._token) as others,
            Contest(
                settings,
                material.held_out,
                rollouts,
                [self._services.judge, *others],
                decode=material.decode,
                stop_token_ids=material.stop_token_ids,
                version=lambda: self._live,
                say=self._say,
                truth=material.truth,
            ) as contest,
        ):
            yield contest

    async def _restore(self) -> Ledger:
        """Load the checkpoint, if one is to be resumed, and open the ledger, which names the version to go on from."""
        self._checkpoints.clear_leftovers()
        found = self._checkpoints.to_resume()
        ledger = await asyncio.to_thread(Ledger.open, self._settings, found and found[1], self._say)
        learner, version = self._services.learner, ledger.version
        if found is not None:
            path, state = found
            await learner.load(str(path))
            self._done = Done(version, state.next_prompt, frozenset(state.taken_ahead))
            self._first_step = state.step
            self._say(f"resumed from {path}: step {state.step}")
        else:
            self._done = Done(version, 0, frozenset())
        learner.begin_at(version)
        return ledger

    async def _publish(self, version: PolicyVersion) -> None:
        self._before_push()
        await self._services.fleet.publish(self._services.learner, version)
        self._live = version

    async def _train(self, collector: Collector, ledger: Ledger, journal: Journal, contest: Contest) -> PolicyVersion:
        prompts = PromptStream(self._material.prompts, self._settings.seed)
        prompts.seek(self._done.next_prompt, self._done.taken_ahead)
        gate = NumericsGate(self._settings.max_first_logp_gap, self._settings.max_logp_gap)
        try:
            return await train(
                self._settings,
                version=self._done.version,
                prompts=prompts,
                collect=collector,
                inspect=lambda groups: self._inspect(groups, collector, gate),
                learner=self._services.learner,
                publish=self._publish,
                checkpoint=partial(self._checkpoint, ledger, contest),
                ledger=ledger,
                journal=journal,
                observe=self._observe,
            )
        except (ServiceError, asyncio.CancelledError) as error:
            with suppress(ServiceError):  # the cause of the end is what must be told
                await self._save_what_is_done()
            if isinstance(error, Tripped):
                self._write_stopped(error, journal, contest)
            raise

    def _write_stopped(self, error: Tripped, journal: Journal, contest: Contest) -> None:
        """The summary of a run that a tripwire ended."""
        summary = self._progress(self._done.version) | {"stopped": str(error)} | contest.summary() | journal.summary()
        with suppress(OSError):  # as above
            write_summary(Path(self._settings.output_dir) / "summary.json", summary)

    def _observe(self, pipeline: Pipeline) -> None:
        self._status.groups = lambda: {"alive": pipeline.num_alive, "ready": pipeline.num_ready}

    def _inspect(self, groups: Sequence[Group], collector: Collector, gate: NumericsGate) -> None:
        """Raises ServiceError where a step's groups must not be trained on."""
        self._meter.note(groups)
        collector.verdicts.check()
        gate.check(groups, self._done.version)

    async def _checkpoint(self, ledger: Ledger, contest: Contest, version: PolicyVersion, pipeline: Pipeline) -> None:
        self._done = Done(version, pipeline.next_occurrence, frozenset(pipeline.taken_ahead))
        self._tripwires.look(version.step, self._latest())  # where it ends the run, this step is what is saved
        contest.begin_if_due(version.step)
        if self._checkpoints.is_due(version.step):
            await self._save()
            await ledger.prune(self._checkpoints.first_needed())
            await asyncio.to_thread(self._meter.write, Path(self._settings.output_dir) / RATES_FILE)
        if self._exports.is_due(version.step):
            await self._exports.save(self._services.learner, version.step)

    async def _save(self) -> Path:
        done = self._done
        return await self._checkpoints.save(
            self._services.learner, done.version, done.next_prompt, sorted(done.taken_ahead)
        )

    async def _save_what_is_done(self) -> None:
        """After a failure: a checkpoint of the last whole step, if that is what the learner still holds."""
        learner, step = self._services.learner, self._done.version.step
        if step > self._first_step and learner.num_steps == step - self._first_step and not self._checkpoints.has(step):
            self._say(f"checkpoint of step {step}: {await self._save()}")

    async def _held_out(self, collector: Collector, journal: Journal, title: str) -> HeldOut:
        with journal.timed("held_out"):
            return await evaluate_held_out(collector, self._material.held_out, self._material.truth, title)

    def _summary(self, version: PolicyVersion, replica_versions: list[str], after: HeldOut) -> dict[str, Any]:
        return self._progress(version) | {
            "held_out_score_after": after.score,
            "held_out_truth_after": after.truth,
            "held_out_after": asdict(after),
            "replica_versions": replica_versions,
        }

    def _progress(self, version: PolicyVersion) -> dict[str, Any]:
        """What the summary of any end says."""
        return {
            "steps": version.step,
            "episodes": version.step * self._settings.completions_per_step,
            "policy_version": version.label,
            "tripwires": self._tripwires.summary(),
            **self._services.adopted(),
            "held_out_score_before": self._before.score,
            "held_out_truth_before": self._before.truth,
            "held_out_before": asdict(self._before),
        }
