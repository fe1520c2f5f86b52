"""Test no. 1: the loop with fakes, and its order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from trainer.batch import MiniBatch
from trainer.config import RunSettings
from trainer.group import Group
from trainer.lineage import Lineage
from trainer.loop import train
from trainer.pipeline import Pipeline
from trainer.prompts import Prompt, PromptStream
from trainer.stats import StepStats
from wire.errors import ServiceError
from wire.generation import Completion, PolicyVersion, VersionSpan
from wire.judgement import GroupVerdict


class World:
    """All the loop's collaborators; `events` is what happened, in order."""

    def __init__(self, settings: RunSettings, stamp_behind: int = 0) -> None:
        self.settings, self.stamp_behind = settings, stamp_behind
        self.events: list[str] = []
        self.lags: list[int] = []
        self.advantages: list[float] = []
        self.refuses_at: int | None = None
        self.save_seconds = 0.0
        self.live = PolicyVersion(0, 0)
        self.lineage = Lineage(0, {})
        self.num_ranks = 1
        self.late: int | None = None
        self.missing: set[int] = set()
        self.accumulated = asyncio.Event()
        self.fails_early = False

    async def collect(self, prompt: Prompt, num_before: int) -> Group:
        self.events.append(f"collect {prompt.occurrence}")
        if prompt.occurrence == self.late:
            await asyncio.wait_for(self.accumulated.wait(), 5.0)
        stamp = PolicyVersion(0, self.live.step - self.stamp_behind).label
        spans = (VersionSpan(stamp, 0, 1),)
        completions = [Completion(i, (7,), (-0.1,), True, spans) for i in range(self.settings.rloo_k)]
        scores = [float(i + 1) for i in range(self.settings.rloo_k)]
        verdict = GroupVerdict(scores=tuple(scores), verdicts=())
        zeros = [0.0] * len(scores)
        known = [None if prompt.occurrence in self.missing else score for score in scores]
        return Group(prompt, completions, ["x"] * len(scores), verdict, known, known, zeros, zeros, zeros, {})

    def inspect(self, groups: Sequence[Group]) -> None:
        self.events.append(f"inspect {[group.prompt.occurrence for group in groups]}")
        if self.refuses_at == self.live.step:
            raise ServiceError("something is wrong with these")

    async def accumulate(self, batch: Sequence[MiniBatch]) -> None:
        if self.fails_early:
            self.accumulated.set()
            raise ServiceError("rank 0 is gone")
        samples = [sample for samples in batch[0].micro_batches for sample in samples]
        self.events.append(f"accumulate {len(samples)} of {batch[0].denominator}")
        self.advantages += [sample.advantage for sample in samples]
        self.accumulated.set()

    async def step(self, batch: Sequence[Sequence[Any]]) -> StepStats:
        self.events.append(f"step {sum(part.denominator for part in batch[0])}")
        self.advantages += [s.advantage for part in batch[0] for samples in part.micro_batches for s in samples]
        return StepStats()

    async def publish(self, version: PolicyVersion) -> None:
        self.events.append(f"publish {version.label}")
        self.live = version

    async def record_step(
        self, version: PolicyVersion, groups: Sequence[Group], stats: StepStats, *, dropped: Sequence[tuple[int, str]]
    ) -> None:
        self.events.append(f"ledger {version.label} {[group.prompt.occurrence for group in groups]} {list(dropped)}")

    async def checkpoint(self, version: PolicyVersion, pipeline: Pipeline) -> None:
        self.events.append(f"checkpoint {version.label} {pipeline.next_occurrence}")
        if self.save_seconds:
            await asyncio.sleep(self.save_seconds)
            self.events.append(f"saved {version.label}")

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        yield

    def record(
        self,
        version: PolicyVersion,
        groups: Sequence[Group],
        stats: StepStats,
        *,
        lags: Sequence[int],
        num_dropped: int,
    ) -> None:
        self.events.append(f"record {version.label} {[group.prompt.occurrence for group in groups]}")
        self.lags += lags


def settings_for(max_lag: int) -> RunSettings:
    """Two prompts a step, three steps."""
    return RunSettings(
        rloo_k=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        total_episodes=12,
        max_lag=max_lag,
        device="cpu",
    )


async def run(world: World) -> PolicyVersion:
    prompts = PromptStream([Prompt(i, (), (1, 2)) for i in range(50)], seed=1)
    return await train(
        world.settings,
        version=world.live,
        prompts=prompts,
        collect=world.collect,
        inspect=world.inspect,
        learner=world,
        publish=world.publish,
        checkpoint=world.checkpoint,
        ledger=world,
        journal=world,
    )


async def test_on_policy_the_order_is_collect_inspect_step_ledger_publish_record_checkpoint() -> None:
    world = World(settings_for(max_lag=0))
    assert await run(world) == PolicyVersion(0, 3)
    assert world.events[:9] == [
        "collect 0",
        "collect 1",
        "inspect [0, 1]",
        "step 4",
        "ledger 0.1 [0, 1] []",
        "publish 0.1",
        "record 0.1 [0, 1]",
        "checkpoint 0.1 2",
        "collect 2",
    ]
    assert set(world.lags) == {0}


@pytest.mark.parametrize("max_lag", [0, 1, 3])
async def test_lag_never_exceeds_max_lag_and_groups_are_trained_on_in_order(max_lag: int) -> None:
    world = World(settings_for(max_lag))
    await run(world)
    assert max(world.lags) == min(max_lag, 2)
    records = [event for event in world.events if event.startswith("record")]
    assert records == ["record 0.1 [0, 1]", "record 0.2 [2, 3]", "record 0.3 [4, 5]"]


async def test_a_completion_older_than_max_lag_ends_the_run() -> None:
    with pytest.raises(ServiceError, match="must not train on with max_lag 0"):
        await run(World(settings_for(max_lag=0), stamp_behind=1))


async def test_what_is_trained_on_has_its_advantage_over_the_others() -> None:
    world = World(settings_for(max_lag=0))
    await run(world)
    assert sorted(world.advantages) == [-1.0] * 6 + [1.0] * 6  # scores 1 and 2, two groups, three steps


def begun_early(late: int, **changes: Any) -> World:
    """Four groups of two a step, of which `late` is there when others have been begun; a micro-step is one group."""
    world = World(
        replace(settings_for(max_lag=0), gradient_accumulation_steps=4, **{"early_gradients": True} | changes)
    )
    world.late = late
    return world


def work_of(world: World) -> list[str]:
    return [event for event in world.events if event.startswith(("accumulate", "inspect", "step"))]


async def test_groups_that_are_ready_are_begun_before_the_late_one_is_there_and_trained_on_once() -> None:
    world = begun_early(late=0)
    await run(world)
    # The second step's groups are ready together: nothing is gained by parts.
    assert work_of(world) == [
        "accumulate 6 of 8", "inspect [0, 1, 2, 3]", "step 8", "inspect [4, 5, 6, 7]", "step 8"
    ]  # fmt: skip
    assert sorted(world.advantages) == [-1.0] * 8 + [1.0] * 8


async def test_where_nothing_is_left_the_update_still_has_a_gradient_to_end_with() -> None:
    world = begun_early(late=3)
    world.missing = {3, 4}
    await run(world)
    assert work_of(world)[:3] == ["accumulate 6 of 8", "inspect [0, 1, 2, 3]", "step 8"]
    assert sorted(world.advantages) == [-1.0] * 6 + [1.0] * 6


async def test_a_part_that_fails_fails_the_step() -> None:
    world = begun_early(late=0)
    world.fails_early = True
    with pytest.raises(ServiceError, match="rank 0 is gone"):
        await run(world)
    assert not [event for event in work_of(world) if event.startswith("step")]


@pytest.mark.parametrize(
    "changes",
    [
        {"deterministic": True},
        {"normalize_advantage": True},
        {"normalize_reward": True},
        {"num_ppo_epochs": 2},
        {"early_gradients": False},
    ],
)
async def test_nothing_is_begun_early_that_needs_the_whole_step(changes: dict[str, Any]) -> None:
    world = begun_early(late=0, **changes)
    world.accumulated.set()
    await run(world)
    assert not [event for event in work_of(world) if event.startswith("accumulate")]


async def test_groups_that_inspection_refuses_are_not_trained_on() -> None:
    world = World(settings_for(max_lag=0))
    world.refuses_at = 1
    with pytest.raises(ServiceError, match="something is wrong"):
        await run(world)
    assert [event for event in world.events if event.startswith(("inspect", "step"))] == [
        "inspect [0, 1]", "step 4", "inspect [2, 3]"
    ]  # fmt: skip


async def test_the_next_groups_are_written_while_a_checkpoint_is() -> None:
    world = World(settings_for(max_lag=0))
    world.save_seconds = 0.01
    await run(world)
    during = world.events[world.events.index("checkpoint 0.1 2") : world.events.index("saved 0.1")]
    assert during == ["checkpoint 0.1 2", "collect 2", "collect 3"]
