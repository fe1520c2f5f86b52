"""First in, first out, bounded lag."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from trainer.pipeline import Pipeline
from trainer.prompts import Prompt
from wire.errors import PromptDropped, ServiceError


def stream() -> Iterator[Prompt]:
    return (Prompt(index, (), ()) for index in itertools.count())


async def test_groups_come_in_the_order_of_admission_however_long_each_takes() -> None:
    async def collect(prompt: Prompt) -> Any:
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

    async def collect(prompt: Prompt) -> Any:
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
    async def collect(prompt: Prompt) -> Any:
        if prompt.occurrence in (1, 2):
            raise PromptDropped("too few scores")
        return prompt.occurrence

    async with Pipeline(stream(), collect, capacity=2) as pipeline:
        assert await pipeline.take(2) == [0, 3]
        assert pipeline.num_dropped == 2
        assert pipeline.next_occurrence == 4


async def test_a_failure_of_the_system_ends_the_wait() -> None:
    async def collect(prompt: Prompt) -> Any:
        raise ServiceError("replica-0 is gone")

    async with Pipeline(stream(), collect, capacity=2) as pipeline:
        with pytest.raises(ServiceError, match="replica-0"):
            await pipeline.take(1)


async def test_leaving_cancels_what_is_in_the_making() -> None:
    cancelled = []

    async def collect(prompt: Prompt) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(prompt.occurrence)
            raise

    async with Pipeline(stream(), collect, capacity=3):
        await asyncio.sleep(0.01)
    assert cancelled == [0, 1, 2]


async def test_a_row_of_drops_that_no_prompt_can_explain_ends_the_run() -> None:
    async def collect(prompt: Prompt) -> Any:
        raise PromptDropped("0 of 4 completions have a score (missing verdicts: 4 server_lost)")

    async with Pipeline(stream(), collect, capacity=2) as pipeline:
        with pytest.raises(ServiceError, match=r"16 groups in a row were dropped; the last: .*server_lost"):
            await pipeline.take(1)
