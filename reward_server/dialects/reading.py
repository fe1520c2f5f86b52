"""What asking a judge takes and what reading its output gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """The chat messages that ask for a verdict, and how many places of the responses were altered in them.

    A place is altered where a response holds a mark of the judge's own format; see `neutral.neutral`.
    """

    messages: list[dict[str, str]]
    neutralised: int = 0


@dataclass(frozen=True)
class Reading:
    """The numbers of one output: a score 1..5 for each response and, for two, a ranking 1..6 (1: the first is best)."""

    scores: tuple[float, ...]
    ranking: int | None


class Unreadable(Exception):
    """An output does not keep the dialect's contract; the message says where. Another generation may."""


class Unwritable(Exception):
    """The dialect has no form for this request, such as a turn of an unknown role; no generation can help."""
