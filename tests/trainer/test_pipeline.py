"""First in, first out, bounded lag."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.pipeline import Pipeline
from trainer.prompts import Prompt
from wire.errors import PromptDropped, ServiceError
from wire.waits import WAITS


def stream() -> Iterator[Prompt]:
    return (Prompt(index, (), ()) for index in itertools.count())


async def test_groups_come_in_the_order_of_admission_however_long_each_takes() -> None:
    async def collect(prompt: Prompt, num_before: int) -> Any:
        await asyncio.sleep(0.02 if prompt.occurrence % 3 == 0 else 0)
        return prompt.occurrence

    async with Pipeline(stream(), collect, capacity=4) as pipeline:
        taken = []
        for _ in range(5):
            taken += await pipeline.take(2)
            pipeline.release(2)
    assert taken == list(range(10))


async def test_no_more_than_capacity_are_alive_from_admission_to_release() -> None:
    started = []

    async def collect(prompt: Prompt, num_before: int) -> Any:
        started.append(prompt.occurrence)
        return prompt.occurrence

    async with Pipeline(stream(), collect, capacity=4) as pipeline:
        await pipeline.take(2)
        await asyncio.sleep(0.01)
        assert started == [0, 1, 2, 3]
        pipeline.release(2)
        await asyncio.sleep(0.01)
        assert started == [0, 1, 2, 3, 4, 5]


async def test_a_dropped_group_gives_its_place_to_the_next_in_order() -> None:
    async def collect(prompt: Prompt, num_before: int) -> Any:
        if prompt.occurrence in (1, 2):
            raise PromptDropped("too few scores")
        return prompt.occurrence

    async with Pipeline(stream(), collect, capacity=2) as pipeline:
        assert await pipeline.take(2) == [0, 3]
        assert pipeline.num_dropped == 2
        assert pipeline.next_occurrence == 4


async def test_a_failure_of_the_system_ends_the_wait() -> None:
    async def collect(prompt: Prompt, num_before: int) -> Any:
        raise ServiceError("replica-0 is gone")

    async with Pipeline(stream(), collect, capacity=2) as pipeline:
        with pytest.raises(ServiceError, match="replica-0"):
            await pipeline.take(1)


async def test_leaving_cancels_what_is_in_the_making() -> None:
    cancelled = []

    async def collect(prompt: Prompt, num_before: int) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(prompt.occurrence)
            raise

    async with Pipeline(stream(), collect, capacity=3):
        await asyncio.sleep(0.01)
    assert cancelled == [0, 1, 2]


async def test_a_row_of_drops_that_no_prompt_can_explain_ends_the_run() -> None:
    async def collect(prompt: Prompt, num_before: int) -> Any:
        raise PromptDropped("0 of 4 completions have a score (missing verdicts: 4 server_lost)")

    async with Pipeline(stream(), collect, capacity=2) as pipeline:
        with pytest.raises(ServiceError, match=r"16 groups in a row were dropped; the last: .*server_lost"):
            await pipeline.take(1)


async def test_a_later_group_that_is_ready_overtakes_one_that_is_not_as_often_as_lookahead_allows() -> None:
    go_on = {0: asyncio.Event(), 3: asyncio.Event()}

    async def collect(prompt: Prompt, num_before: int) -> Any:
        if prompt.occurrence in go_on:
            await go_on[prompt.occurrence].wait()
        return prompt.occurrence

    async with Pipeline(stream(), collect, capacity=6, lookahead=2) as pipeline:
        assert await pipeline.take(2) == [1, 2]
        assert (pipeline.next_occurrence, pipeline.taken_ahead) == (0, {1, 2})
        taking = asyncio.create_task(pipeline.take(2))
        await asyncio.sleep(0.01)
        assert not taking.done()  # two have overtaken it
        go_on[0].set()
        assert await taking == [0, 4]
        assert (pipeline.next_occurrence, pipeline.taken_ahead) == (3, {4})


async def test_a_group_without_signal_gives_its_place_to_the_next_as_often_as_groups_are_taken() -> None:
    async def collect(prompt: Prompt, num_before: int) -> Any:
        return prompt.occurrence

    async with Pipeline(stream(), collect, capacity=4, is_wanted=lambda group: group not in (1, 3, 4, 5)) as pipeline:
        assert await pipeline.take(2) == [0, 2]
        assert pipeline.drain_passed_over() == [(1, "its rewards are all equal")]
        pipeline.release(2)
        assert await pipeline.take(2) == [5, 6]  # 3 and 4 were passed over, and that is as many as are taken
        assert [occurrence for occurrence, _ in pipeline.drain_passed_over()] == [3, 4]
        assert (pipeline.num_unwanted, pipeline.num_dropped) == (3, 0)


async def test_a_wait_names_the_group_that_is_waited_for() -> None:
    async def collect(prompt: Prompt, num_before: int) -> Any:
        await asyncio.Event().wait()

    async with Pipeline(stream(), collect, capacity=2) as pipeline:
        taking = asyncio.create_task(pipeline.take(2))
        await asyncio.sleep(0.01)
        assert [(wait.who, wait.peer, wait.reason) for wait in WAITS.current] == [
            ("driver", "group 0", "is in the making")
        ]
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


async def test_a_group_is_told_of_as_soon_as_nothing_keeps_it_from_being_taken() -> None:
    made = [asyncio.Event() for _ in range(8)]

    async def collect(prompt: Prompt, num_before: int) -> Any:
        await made[prompt.occurrence].wait()
        if prompt.occurrence == 1:
            raise PromptDropped("too few scores")
        return prompt.occurrence

    told: list[int] = []
    async with Pipeline(stream(), collect, capacity=6, is_wanted=lambda group: group != 2) as pipeline:
        taking = asyncio.create_task(pipeline.take(3, told.append))
        for occurrence, so_far in [(4, []), (2, []), (3, []), (1, []), (0, [0, 3, 4])]:
            made[occurrence].set()
            await asyncio.sleep(0.01)
            assert told == so_far
        assert await taking == [0, 3, 4]
        for occurrence in (7, 6, 5):
            made[occurrence].set()
        await asyncio.sleep(0.01)
        assert told == [0, 3, 4]  # nobody asked for these
        assert await pipeline.take(3, told.append) == told[3:] == [5, 6, 7]


@given(data=st.data(), per_step=st.integers(1, 4), max_lag=st.integers(0, 3), seed=st.integers(0, 10**6))
def test_no_group_is_older_than_max_lag_and_none_was_told_that_fewer_come_before_it(
    data: st.DataObject, per_step: int, max_lag: int, seed: int
) -> None:
    lookahead = data.draw(st.integers(0, max_lag * per_step))
    asyncio.run(_train(per_step, max_lag, lookahead, Random(seed)))


async def _train(per_step: int, max_lag: int, lookahead: int, random: Random) -> None:
    """Steps of groups that take their time, are dropped or unwanted at random."""
    live = 0
    admitted: dict[int, tuple[int, int]] = {}  # when it was: the live version, and the latest place it may have
    used: list[int] = []

    async def collect(prompt: Prompt, num_before: int) -> Any:
        admitted[prompt.occurrence] = (live, live * per_step + num_before)
        for _ in range(random.choice([0, 1, 3, 30])):
            await asyncio.sleep(0)
        if random.random() < 0.1:
            raise PromptDropped("too few scores")
        return prompt.occurrence

    capacity = (max_lag + 1) * per_step - lookahead
    wanted = {occurrence: random.random() < 0.9 for occurrence in range(10_000)}
    async with Pipeline(
        stream(), collect, capacity=capacity, lookahead=lookahead, is_wanted=lambda group: wanted[group]
    ) as pipeline:
        for _ in range(8):
            told: list[int] = []
            taken = await pipeline.take(per_step, told.append)
            assert sorted(told) == sorted(taken)
            for occurrence in taken:
                version, latest = admitted[occurrence]
                assert live - version <= max_lag
                assert live <= latest // per_step
                used.append(occurrence)
            assert pipeline.num_alive <= capacity
            await asyncio.sleep(0)
            live += 1
            pipeline.release(per_step)
        passed_over = [occurrence for occurrence, _ in pipeline.drain_passed_over()]
        everything = sorted([*used, *passed_over])
        assert everything == [*range(pipeline.next_occurrence), *sorted(pipeline.taken_ahead)]
