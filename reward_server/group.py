"""Judging one group: each pair is asked about as soon as its two completions exist.

    ring (from the seed)      2 -> 0 -> 3 -> 1 -> back to 2
    completions arrive        0, 3          pair (0, 3) goes to the judge
                              1 is empty    unjudged: the ring closes over it, 2 -> 0 -> 3 -> back to 2
                              2             pairs (2, 0) and (3, 2) go to the judge

Each judged completion stands once in place 1 and once in place 2. Two judged ones are compared in both orders; a single
one is judged alone; where none is left, no call is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

from reward_server.aggregate import scores_from_verdicts
from reward_server.answers import judged_answer
from reward_server.pairings import ring
from reward_server.seeds import derived_seed
from wire.errors import ServiceError
from wire.judgement import GroupVerdict, PlacedVerdict, Verdict

JudgePair = Callable[[str, str | None, int], Coroutine[Any, Any, Verdict]]


async def judge_group(
    judge_pair: JudgePair, completions: Sequence[Awaitable[str | None]], seed: int, tie_break: float
) -> GroupVerdict:
    """The scores of K completions, which may still be in the making.

    Args:
        judge_pair: `(first answer, second answer or None, seed) -> Verdict`; answers come without reasoning.
        completions: each gives a completion's text, or None where there is nothing to judge.
        seed: draws the ring and the seed of each pair.
        tie_break: points a ranking step is worth where two scores are equal.

    Raises:
        ServiceError: a completion was cancelled.
        Whatever a completion or `judge_pair` raises. The other tasks are then cancelled, and so is a completion
            that is still in the making.
    """
    makings = [asyncio.ensure_future(completion) for completion in completions]
    try:
        return await _Group(judge_pair, ring(len(makings), seed), seed, tie_break).judge(makings)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors  # the first is the cause; the others are what it tore down
    finally:
        for making in makings:
            making.cancel()
        await asyncio.gather(*makings, return_exceptions=True)


class _Group:
    """One group on its way. An answer is None where a completion is unjudged, and absent while it is in the making."""

    def __init__(self, judge_pair: JudgePair, order: list[int], seed: int, tie_break: float) -> None:
        self._judge_pair, self._seed, self._tie_break = judge_pair, seed, tie_break
        self._successors = {a: order[place + 1 :] + order[: place + 1] for place, a in enumerate(order)}
        self._answers: dict[int, str | None] = {}
        self._verdicts: dict[int, asyncio.Task[PlacedVerdict]] = {}

    async def judge(self, makings: Sequence[asyncio.Future[str | None]]) -> GroupVerdict:
        async with asyncio.TaskGroup() as tasks:
            for index, making in enumerate(makings):
                tasks.create_task(self._take(tasks, index, making))
        verdicts = [self._verdicts[first].result() for first in self._successors if first in self._verdicts]
        unjudged = tuple(index for index in range(len(makings)) if self._answers[index] is None)
        scores = scores_from_verdicts(len(makings), verdicts, self._tie_break, unjudged)
        return GroupVerdict(scores=tuple(scores), verdicts=tuple(verdicts), unjudged=unjudged)

    async def _take(self, tasks: asyncio.TaskGroup, index: int, making: asyncio.Future[str | None]) -> None:
        await asyncio.wait([making])
        if making.cancelled():  # a TaskGroup takes a CancelledError in a child for a quiet end
            raise ServiceError(f"completion {index} of a group was cancelled before it was judged")
        self._answers[index] = judged_answer(making.result())
        for first, second in self._ready_pairs():
            self._verdicts[first] = tasks.create_task(self._verdict(first, second))

    def _ready_pairs(self) -> Iterator[tuple[int, int]]:
        """Pairs not asked about yet whose second place is certain; (a, a) where a is the only judged one."""
        for first in self._successors:
            if first not in self._verdicts and self._answers.get(first) is not None:
                second = self._next_judged(first)
                if second is not None:
                    yield first, second

    def _next_judged(self, first: int) -> int | None:
        """The next judged completion, `first` itself at the latest; None while one in between is in the making."""
        for candidate in self._successors[first]:
            if candidate not in self._answers:
                return None
            if self._answers[candidate] is not None:
                return candidate
        return None

    async def _verdict(self, first: int, second: int) -> PlacedVerdict:
        alone = second == first
        answer, other = self._answers[first], None if alone else self._answers[second]
        assert answer is not None
        verdict = await self._judge_pair(answer, other, derived_seed("pair", self._seed, first, second))
        return PlacedVerdict(first=first, second=None if alone else second, verdict=verdict)
