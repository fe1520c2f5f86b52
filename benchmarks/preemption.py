"""A preemption trace, and what the replicas that are there could make while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Absence:
    """Replica `index` is away from `start` to `end`, seconds from the beginning; given back at `end`."""

    index: int
    start: float
    end: float


def make_trace(num: int, duration_s: float, *, share: float, every_s: float, away_s: float, seed: int) -> list[Absence]:
    """Waves about every `every_s` seconds, the first after half of that: each takes `share` of the replicas at once.

    The time between waves varies by a half either way. Each comes back after a time of its own, `away_s` on average
    and a half less or more, and at the latest before the next wave takes it again: who is away cannot be taken. None
    is away beyond `duration_s`, in which case it comes back too late to count.
    """
    rng = Random(seed)
    absences: list[Absence] = []
    until = [0.0] * num
    now = every_s / 2
    while now < duration_s:
        there = [index for index in range(num) if until[index] <= now]
        for index in rng.sample(there, min(len(there), round(num * share))):
            until[index] = now + away_s * rng.uniform(0.5, 1.5)
            absences.append(Absence(index, now, until[index]))
        now += every_s * rng.uniform(0.5, 1.5)
    return absences


def present_seconds(num: int, intervals: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Replica-seconds that are there between `start` and `end`, where `intervals` are when one of `num` is away."""
    away = sum(max(0.0, min(end, back) - max(start, gone)) for gone, back in intervals)
    return num * (end - start) - away


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below `share` of them; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
