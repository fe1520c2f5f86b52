"""A heavy-tailed quantity: log-normal, cut at its longest. Lengths of completions and seconds of verdicts are such.

    X = shift + min(median exp(spread Z), longest),  Z standard normal

With a `spread` of 0.9 and a cut at 10 medians, one in 190 is as long as the cut, and the mean is 1.46 medians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from random import Random
from statistics import NormalDist

_Z = NormalDist()
STEPS = 2000  # of an integral; the integrands are monotone and bounded, so the error is below range / STEPS


@dataclass(frozen=True)
class Duration:
    """See the top of the file. Any unit; `longest` is the cut without the shift."""

    median: float
    spread: float
    longest: float
    shift: float = 0.0

    @classmethod
    def of_mean(cls, mean: float, spread: float, longest: float) -> Duration:
        """With this mean before the cut: the log-normal's is median exp(spread^2 / 2)."""
        return cls(mean * math.exp(-(spread**2) / 2), spread, longest)

    def scaled(self, factor: float, shift: float) -> Duration:
        """factor X, moved by `shift`."""
        return Duration(self.median * factor, self.spread, self.longest * factor, self.shift * factor + shift)

    def draw(self, seed: int) -> float:
        """The value that belongs to `seed`."""
        drawn = Random(seed).lognormvariate(0.0, self.spread) if self.spread else 1.0
        return self.shift + min(self.median * drawn, self.longest)

    def cdf(self, value: float) -> float:
        """P(X <= value)."""
        value -= self.shift
        if value >= self.longest:
            return 1.0
        if value <= 0:
            return 0.0
        if not self.spread:
            return float(value >= self.median)
        return _Z.cdf(math.log(value / self.median) / self.spread)

    @property
    def top(self) -> float:
        """The largest value there is."""
        return self.shift + (self.longest if self.spread else min(self.median, self.longest))

    @cached_property
    def mean(self) -> float:
        """E[X]."""
        return self.shift + self._moment(1)

    @cached_property
    def second_moment(self) -> float:
        """E[X^2]."""
        return self.shift**2 + 2 * self.shift * self._moment(1) + self._moment(2)

    def _moment(self, order: int) -> float:
        """E[min(Y, c)^n] = E[Y^n] Phi(z - n s) + c^n (1 - Phi(z)) with z = log(c / median) / s: Y^n is log-normal too,
        and weighting by it moves the normal by n s."""
        if not self.spread:
            return float(min(self.median, self.longest) ** order)
        z = math.log(self.longest / self.median) / self.spread
        full = self.median**order * math.exp((order * self.spread) ** 2 / 2)
        return full * _Z.cdf(z - order * self.spread) + self.longest**order * (1 - _Z.cdf(z))
