"""What reading a judge's output gives, and the rules of reading that the dialects share."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reward_server.answers import THOUGHT_END

# Plain decimals as a judge writes them, matched against the whole of a text. A sign, an exponent, NaN and infinity have
# no place in the patterns, nor has any digit of Unicode but these ten, though float() would take them all.
SCORE = re.compile(r"[1-4](\.[0-9]+)?|5(\.0+)?")
RANKING = re.compile(r"[1-6]")


@dataclass(frozen=True)
class Reading:
    """The numbers of one output: a score 1..5 for each response and, for two, a ranking 1..6 (1: the first is best)."""

    scores: tuple[float, ...]
    ranking: int | None


class Unreadable(Exception):
    """An output does not keep the dialect's contract; the message says where. Another generation may."""


def verdict_in(text: str) -> str:
    """What follows the judge's last `</think>`. What stands before is thought: it often holds drafts of the verdict.

    Raises:
        Unreadable: the reasoning never ended.
    """
    _, thought_end, verdict = text.rpartition(THOUGHT_END)
    if not thought_end:
        raise Unreadable(f"no {THOUGHT_END}: the reasoning never ended")
    return verdict


def score(numeral: str) -> float:
    """The score 1..5 that `numeral` writes.

    Raises:
        Unreadable: it writes none.
    """
    if not SCORE.fullmatch(numeral):
        raise Unreadable(f"{numeral[:20]!r} is no score 1..5")
    return float(numeral)


def ranking(numeral: str) -> int:
    """The ranking 1..6 that `numeral` writes.

    Raises:
        Unreadable: it writes none.
    """
    if not RANKING.fullmatch(numeral):
        raise Unreadable(f"{numeral[:20]!r} is no ranking 1..6")
    return int(numeral)
