"""One prompt's two answers before the judge, in both orders."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from reward_server.aggregate import LOWEST_SCORE, NEUTRAL_RANKING
from reward_server.answers import judged_answer
from wire.judgement import Message, Verdict


class Judge(Protocol):
    """Who compares; `reward_server.client.RewardClient` is the real one."""

    async def judge(
        self,
        conversation: Sequence[Message],
        responses: Sequence[str],
        seed: int,
        vote: int = 0,
        *,
        background: asyncio.Event | None = None,
    ) -> Verdict: ...


@dataclass(frozen=True)
class Compared:
    """`outcome` for the first answer: 1 it won, 0 it lost, between them a draw; None where neither order was judged.
    `score` is the first answer's, 1..5, `margin` is by how much it is above the other one's, -4..4; both are means over
    the orders, and None where there is none."""

    outcome: float | None
    score: float | None
    margin: float | None


UNKNOWN = Compared(None, None, None)


async def compare(
    judge: Judge,
    conversation: Sequence[Message],
    answer: str,
    other: str,
    *,
    seed: int,
    background: asyncio.Event | None,
) -> Compared:
    """What the judge says of `answer` against `other`, both with their reasoning.

    As in training, an answer that gives nothing to judge has the lowest score without a call, and here it loses. Two
    equal answers are a draw, and the judge reads one of them alone. Where one order has no verdict the other one counts
    by itself. An answer that has the lowest score unread has no margin: what the other one is worth was not asked.

    Raises:
        Unauthorized: the service refuses the token.
    """
    ours, theirs = judged_answer(answer), judged_answer(other)
    if ours is None:
        return Compared(0.5, LOWEST_SCORE, 0.0) if theirs is None else Compared(0.0, LOWEST_SCORE, None)
    if theirs is None or ours == theirs:
        verdict = await judge.judge(conversation, (ours,), seed, background=background)
        score = verdict.scores[0] if verdict.scores else None
        if theirs is not None:
            return Compared(0.5, score, 0.0)
        return Compared(1.0, score, None if score is None else score - LOWEST_SCORE)
    first, second = await asyncio.gather(
        judge.judge(conversation, (ours, theirs), seed, background=background),
        judge.judge(conversation, (theirs, ours), seed, background=background),
    )
    wins = [_first_wins(first), _inverse(_first_wins(second))]
    # (our score, the other one's) by each order.
    pairs = [verdict.scores[::way] for way, verdict in ((1, first), (-1, second)) if verdict.scores]
    return Compared(
        _mean([win for win in wins if win is not None]),
        _mean([score for score, _ in pairs]),
        _mean([score - other for score, other in pairs]),
    )


def _first_wins(verdict: Verdict) -> float | None:
    """By the individual scores; where they are equal, by the ranking, if there is one: 1, 0 or 1/2."""
    if verdict.scores is None:
        return None
    first, second = verdict.scores
    if first != second:
        return float(first > second)
    return 0.5 if verdict.ranking is None else float(verdict.ranking < NEUTRAL_RANKING)


def _inverse(outcome: float | None) -> float | None:
    return None if outcome is None else 1 - outcome


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
