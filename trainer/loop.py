"""The loop: read this first.

    prompt -> K completions -> verdicts -> K scores -> K advantages -> loss -> policy version + 1 -> every replica

It is handed its collaborators and holds no telemetry, no retries and no device code.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from trainer.accumulation import Accumulation, Stepper
from trainer.advantages import step_advantages
from trainer.config import RunSettings
from trainer.group import Group
from trainer.lineage import Lineage
from trainer.pipeline import Pipeline, always
from trainer.prompts import Prompt, PromptStream
from trainer.stats import StepStats
from wire.errors import ServiceError
from wire.generation import PolicyVersion


class Ledger(Protocol):
    """The memory of the run; `trainer.ledger.Ledger` is the real one."""

    @property
    def lineage(self) -> Lineage: ...

    async def record_step(
        self,
        version: PolicyVersion,
        groups: Sequence[Group],
        stats: StepStats,
        *,
        dropped: Sequence[tuple[int, str]],
    ) -> None: ...


class Journal(Protocol):
    """Where the loop's facts go; `trainer.journal.Journal` is the real one."""

    def timed(self, stage: str) -> AbstractContextManager[None]: ...

    def record(
        self,
        version: PolicyVersion,
        groups: Sequence[Group],
        stats: StepStats,
        *,
        lags: Sequence[int],
        num_dropped: int,
    ) -> None: ...


async def train(
    settings: RunSettings,
    *,
    version: PolicyVersion,
    prompts: PromptStream,
    collect: Callable[[Prompt, int], Awaitable[Group]],
    inspect: Callable[[Sequence[Group]], None],
    learner: Stepper,
    publish: Callable[[PolicyVersion], Awaitable[None]],
    checkpoint: Callable[[PolicyVersion, Pipeline], Awaitable[None]],
    ledger: Ledger,
    journal: Journal,
    observe: Callable[[Pipeline], None] = lambda _: None,
) -> PolicyVersion:
    """Train from `version` to the last step; returns the final version.

    Args:
        settings: the run's.
        version: the version the learner holds, already live on every replica.
        prompts: the stream, at the first prompt that no finished step has used.
        collect: one group's whole way; starts as soon as the prompt is admitted. It is told how many groups at most
            are trained on before this one.
        inspect: looks at a step's groups before they are trained on; raises to end the run.
        learner: takes the steps.
        publish: makes a version live on every replica.
        checkpoint: called after each step with the version and the pipeline, which knows what is used of the stream;
            decides whether to save.
        ledger: writes each step down before its weights are pushed.
        journal: takes note.
        observe: shown the pipeline before the first prompt is admitted.

    Raises:
        ServiceError: a collaborator failed, `inspect` found the groups unfit, or a completion was older than max_lag
            allows (a bug, not a case).
    """
    pipeline = Pipeline(
        prompts,
        collect,
        capacity=settings.groups_alive,
        lookahead=settings.lookahead,
        is_wanted=_has_signal if settings.replace_equal_rewards else always,
    )
    observe(pipeline)
    async with pipeline:
        while version.step < settings.num_steps:
            async with Accumulation(learner, settings) as accumulation:
                with journal.timed("wait"):
                    groups = await pipeline.take(settings.prompts_per_step, certain=accumulation.offer)
                lags = [_lag(group, version, ledger.lineage, settings.max_lag) for group in groups]
                inspect(groups)
                groups = step_advantages(groups, settings)
                with journal.timed("step"):
                    stats = await accumulation.finish(groups)
            version = PolicyVersion(version.lineage, version.step + 1)
            await ledger.record_step(version, groups, stats, dropped=pipeline.drain_passed_over())
            with journal.timed("publish"):
                await publish(version)
            pipeline.release(len(groups))
            journal.record(version, groups, stats, lags=lags, num_dropped=pipeline.num_dropped)
            with journal.timed("checkpoint"):
                await checkpoint(version, pipeline)
    return version


def _has_signal(group: Group) -> bool:
    return group.has_signal


def _lag(group: Group, version: PolicyVersion, lineage: Lineage, max_lag: int) -> int:
    """Steps between the weights that are about to be trained and the oldest that wrote a token of the group."""
    oldest = group.oldest_version
    lag = version.step - oldest.step
    if not 0 <= lag <= max_lag or not all(lineage.holds(written) for written in group.versions):
        raise ServiceError(
            f"prompt {group.prompt.occurrence} was written by version {oldest.label}, which version {version.label} "
            f"must not train on with max_lag {max_lag}"
        )
    return lag
