"""One prompt's two answers before judges that are known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from trainer.comparison import Compared, compare
from wire.judgement import Message, Verdict

TALK = [Message(role="user", content="sea?")]
Opinion = Callable[[Sequence[str]], Verdict]


class Judge:
    def __init__(self, opinion: Opinion) -> None:
        self.opinion, self.asked = opinion, []  # type: ignore[var-annotated]

    async def judge(self, conversation: Any, responses: Sequence[str], seed: int, vote: int = 0, *, background: Any):
        assert list(conversation) == TALK and seed == 7 and background
        self.asked.append(tuple(responses))
        return self.opinion(responses)


def by_length(responses: Sequence[str]) -> Verdict:
    return Verdict(scores=tuple(float(min(5, len(text))) for text in responses))


def verdict(first: float, second: float, ranking: int | None = None) -> Opinion:
    """Whoever stands where."""
    return lambda responses: Verdict(scores=(first, second)[: len(responses)], ranking=ranking)


def missing_where(unwanted: Callable[[Sequence[str]], bool]) -> Opinion:
    return lambda responses: Verdict(missing="timeout") if unwanted(responses) else by_length(responses)


async def compared(opinion: Opinion, answer: str = "abcd", other: str = "xy") -> tuple[Compared, list[Any]]:
    judge = Judge(opinion)
    return await compare(judge, TALK, answer, other, seed=7, background=asyncio.Event()), judge.asked


async def test_both_orders_are_judged_and_the_answers_own_scores_count() -> None:
    found, asked = await compared(by_length)
    assert found == Compared(1.0, 4.0, 2.0) and asked == [("abcd", "xy"), ("xy", "abcd")]
    assert (await compared(by_length, "xy", "abcd"))[0] == Compared(0.0, 2.0, -2.0)


@pytest.mark.parametrize(
    "opinion", [verdict(4, 2), verdict(2, 4), verdict(3, 3), verdict(3, 3, ranking=1), verdict(3, 3, ranking=6)]
)
async def test_a_judge_that_likes_a_place_or_cannot_tell_gives_a_draw(opinion: Opinion) -> None:
    assert (await compared(opinion))[0] == Compared(0.5, 3.0, 0.0)


async def test_equal_scores_are_told_apart_by_the_ranking() -> None:
    def ranks(responses: Sequence[str]) -> Verdict:
        return Verdict(scores=(3, 3), ranking=2 if len(responses[0]) > len(responses[1]) else 5)

    assert (await compared(ranks))[0] == Compared(1.0, 3.0, 0.0)


async def test_one_order_without_a_verdict_leaves_the_other_and_both_leave_nothing() -> None:
    assert (await compared(missing_where(lambda responses: responses[0] == "xy")))[0] == Compared(1.0, 4.0, 2.0)
    assert (await compared(missing_where(lambda responses: True)))[0] == Compared(None, None, None)


async def test_equal_answers_are_a_draw_and_the_judge_reads_one() -> None:
    found, asked = await compared(by_length, "<think>so</think>abc", "abc")
    assert found == Compared(0.5, 3.0, 0.0) and asked == [("abc",)]


async def test_an_answer_that_gives_nothing_to_judge_loses_without_a_call() -> None:
    assert await compared(by_length, "<think>never ends", "xy") == (Compared(0.0, 1.0, None), [])
    assert await compared(by_length, "", " ") == (Compared(0.5, 1.0, 0.0), [])
    assert await compared(by_length, "abc", "") == (Compared(1.0, 3.0, 2.0), [("abc",)])
