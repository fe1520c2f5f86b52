"""Numbers of a step that add up: over micro-batches, mini-batches and ranks. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Moments:
    """Count, sum, sum of squares and largest magnitude of a quantity."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[Any]) -> Moments:
        """The moments of `values`; fastest where they are an array already."""
        array = np.asarray(values, dtype=np.float64)
        if not len(array):
            return cls()
        largest = float(np.abs(array).max())
        return cls(len(array), float(array.sum()), float(np.square(array).sum()), largest)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            max(self.largest, other.largest),
        )

    @property
    def mean(self) -> float:
        """Mean; NaN of nothing."""
        return self.total / self.count if self.count else math.nan

    @property
    def variance(self) -> float:
        """Population variance; NaN of nothing."""
        return max(self.squares / self.count - self.mean**2, 0.0) if self.count else math.nan

    @property
    def std(self) -> float:
        """Population standard deviation; NaN of nothing."""
        return self.variance**0.5

    @property
    def effective_share(self) -> float:
        """Of weights: Kish's effective sample size, (sum w)^2 / sum w^2, over their number; NaN of nothing."""
        return self.total**2 / self.squares / self.count if self.squares else math.nan


@dataclass
class StepStats:
    """What one rank saw in one step of the loop; `+` adds ranks up.

    Token quantities: `entropy`, `ratio` (new over start-of-step policy), `logp_diff` (learner minus replica, nats),
    `ratio_outside` (1 where learner over replica leaves 0.9..1.1), `weight` (importance weights), `weight_capped`.
    Completion quantities: `approx_kl`, `clipped`. `loss` is already a share of the step's mean, so ranks add;
    `grad_norm` and `learning_rate` are equal on all ranks. `num_tokens` are those of the rows that the training pass
    computed: a prompt that completions share counts once.
    """

    entropy: Moments = field(default_factory=Moments)
    ratio: Moments = field(default_factory=Moments)
    logp_diff: Moments = field(default_factory=Moments)
    ratio_outside: Moments = field(default_factory=Moments)
    weight: Moments = field(default_factory=Moments)
    weight_capped: Moments = field(default_factory=Moments)
    approx_kl: Moments = field(default_factory=Moments)
    clipped: Moments = field(default_factory=Moments)
    loss: float = 0.0
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    num_tokens: int = 0

    def __add__(self, other: StepStats) -> StepStats:
        return StepStats(
            entropy=self.entropy + other.entropy,
            ratio=self.ratio + other.ratio,
            logp_diff=self.logp_diff + other.logp_diff,
            ratio_outside=self.ratio_outside + other.ratio_outside,
            weight=self.weight + other.weight,
            weight_capped=self.weight_capped + other.weight_capped,
            approx_kl=self.approx_kl + other.approx_kl,
            clipped=self.clipped + other.clipped,
            loss=self.loss + other.loss,
            grad_norm=max(self.grad_norm, other.grad_norm),
            learning_rate=max(self.learning_rate, other.learning_rate),
            num_tokens=self.num_tokens + other.num_tokens,
        )


def merge(ranks: Iterable[StepStats]) -> StepStats:
    """The stats of a step over all ranks."""
    return sum(ranks, StepStats())
