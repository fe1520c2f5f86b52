"""What reading a judge's output gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """The numbers of one output: a score 1..5 for each response and, for two, a ranking 1..6 (1: the first is best)."""

    scores: tuple[float, ...]
    ranking: int | None


class Unreadable(Exception):
    """An output does not keep the dialect's contract; the message says where. Another generation may."""


class Unwritable(Exception):
    """The dialect has no form for this request, such as a turn of an unknown role; no generation can help."""
