"""Judging one group: each pair is asked about as soon as its two completions exist.

    order (from the seed)     2 -> 0 -> 3 -> 1 -> back to 2            here the pairing is a ring
    completions arrive        0, 3          pair (0, 3) goes to the judge
                              1 is empty    unjudged: the ring closes over it, 2 -> 0 -> 3 -> back to 2
                              2             pairs (2, 0) and (3, 2) go to the judge

Which pairs there are follows from the seed and the answers alone, never from the order of arrival. Completions with the
same answer are one to the judge: one of them is compared, and its score is the others'. Where a second copy turns up
after the first was paired, the pairs that the ring then closes over are given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from reward_server.aggregate import LOWEST_SCORE
from reward_server.answers import judged_answer
from reward_server.pairings import drawn_order
from reward_server.scheme import Scheme
from reward_server.seeds import derived_seed
from wire.errors import ServiceError
from wire.judgement import GroupVerdict, PlacedVerdict, Verdict

JudgePair = Callable[[str, str | None, int, int], Coroutine[Any, Any, Verdict]]

_Question = tuple[str, str | None, int]  # first answer, second answer, vote


async def judge_group(
    judge_pair: JudgePair, completions: Sequence[Awaitable[str | None]], seed: int, scheme: Scheme
) -> GroupVerdict:
    """The scores of K completions, which may still be in the making.

    Args:
        judge_pair: `(first answer, second answer or None, seed, vote) -> Verdict`; answers come without reasoning.
        completions: each gives a completion's text, or None where there is nothing to judge.
        seed: draws the pairing and the seed of each pair.
        scheme: who is compared with whom, how often, and how scores come of it.

    Raises:
        ServiceError: a completion was cancelled.
        Whatever a completion or `judge_pair` raises. The other tasks are then cancelled, and so is a completion
            that is still in the making.
    """
    makings = [asyncio.ensure_future(completion) for completion in completions]
    try:
        return await _Group(judge_pair, len(makings), seed, scheme).judge(makings)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors  # the first is the cause; the others are what it tore down
    finally:
        for making in makings:
            making.cancel()
        await asyncio.gather(*makings, return_exceptions=True)


class _Group:
    """One group on its way. An answer is None where a completion is unjudged, and absent while it is in the making."""

    def __init__(self, judge_pair: JudgePair, num: int, seed: int, scheme: Scheme) -> None:
        self._judge_pair, self._num, self._seed, self._scheme = judge_pair, num, seed, scheme
        self._order = drawn_order(num, seed)
        self._answers: dict[int, str | None] = {}
        self._verdicts: dict[_Question, asyncio.Task[Verdict]] = {}

    async def judge(self, makings: Sequence[asyncio.Future[str | None]]) -> GroupVerdict:
        awaited = {making: index for index, making in enumerate(makings)}
        async with asyncio.TaskGroup() as tasks:
            while awaited:
                done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                self._take({awaited.pop(making): making for making in done})
                self._ask(tasks)
        placed = self._placed()
        unjudged = tuple(index for index in range(self._num) if self._answers[index] is None)
        same_as = self._same_as()
        scores = self._scheme.scores(self._num, placed)
        errors = scores.standard_errors
        return GroupVerdict(
            scores=tuple(LOWEST_SCORE if k in unjudged else scores.scores[same_as[k]] for k in range(self._num)),
            verdicts=tuple(placed),
            unjudged=unjudged,
            same_as=same_as,
            standard_errors=errors and tuple(errors[same_as[k]] for k in range(self._num)),
        )

    def _take(self, made: Mapping[int, asyncio.Future[str | None]]) -> None:
        for index, making in sorted(made.items()):
            if making.cancelled():
                raise ServiceError(f"completion {index} of a group was cancelled before it was judged")
            self._answers[index] = judged_answer(making.result())

    def _ask(self, tasks: asyncio.TaskGroup) -> None:
        """What can be asked by now and was not yet."""
        wanted = dict.fromkeys(question for *_, question in self._questions())
        for question in wanted:
            if question not in self._verdicts:
                first, second, vote = question
                pair_seed = derived_seed("pair", self._seed, first, second or "")
                self._verdicts[question] = tasks.create_task(self._judge_pair(first, second, pair_seed, vote))
        if len(self._answers) == self._num:  # not earlier: what a copy took out, an unjudged one may bring back
            for question in self._verdicts.keys() - wanted.keys():
                self._verdicts[question].cancel()

    def _questions(self) -> list[tuple[int, int | None, _Question]]:
        """What there is to ask, as far as the answers tell: the pair, and what the judge is shown."""
        answers = self._answers
        return [
            (first, second, (answers[first] or "", None if second is None else answers[second], vote))
            for first, second in self._scheme.pairing.pairs(self._order, answers)
            for vote in range(self._scheme.votes)
        ]

    def _placed(self) -> list[PlacedVerdict]:
        return [
            PlacedVerdict(first=first, second=second, vote=question[2], verdict=self._verdicts[question].result())
            for first, second, question in self._questions()
        ]

    def _same_as(self) -> tuple[int, ...]:
        """For each completion the first in the order that has its answer; an unjudged one stands for itself."""
        firsts: dict[str | None, int] = {}
        for index in self._order:
            firsts.setdefault(self._answers[index], index)
        return tuple(k if self._answers[k] is None else firsts[self._answers[k]] for k in range(self._num))
