r"""A policy small enough that its exact gradient is known, and what a judged group tells about it.

A *world* has X prompts with M candidate completions each. A candidate has D features phi, a quality and a length. The
policy draws candidates of a prompt with probability pi(y|x) \propto exp(theta . phi(x, y)), so

    J(theta)        = mean over x of sum_y pi(y|x) quality(x, y)                    the mean truth, in points
    grad J          = mean over x of Cov_pi(phi, quality)
    grad log pi     = phi(x, y) - sum_y' pi(y'|x) phi(x, y')

Shapes: X prompts, M candidates, D features, K completions of a group.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.signal_schemes import Bench, Way
from trainer.rloo import leave_one_out

Array = NDArray[np.float64]
Features = NDArray[np.float32]

PROMPTS, CANDIDATES, FEATURES = 64, 64, 256
MIDDLE, SPREAD = 3.0, 0.8  # mean and standard deviation of qualities, points on the scale of 1..5
LEARNABLE = 0.5  # share of the qualities' variance that the features explain
TYPICAL_LENGTH, LENGTH_SPREAD, LONGEST = 400, 0.5, 1024  # tokens: median, standard deviation of the logarithm, limit
BETAS = (0.9, 0.999)  # Adam's, the learner's defaults
LENGTH_TELLS = 0.4  # correlation of log length and quality


@dataclass(frozen=True)
class World:
    """See the module. `pair_length` is the root of the mean squared tokens of two completions drawn at random."""

    features_XMD: Features
    quality_XM: Array
    length_XM: Array
    pair_length: float

    @classmethod
    @lru_cache(maxsize=48)  # 4 MB each
    def drawn(cls, seed: int) -> World:
        """Lengths follow the quality and, the larger part, a feature of their own that quality does not depend on."""
        rng = np.random.default_rng([2, seed])
        features = rng.standard_normal((PROMPTS, CANDIDATES, FEATURES), dtype=np.float32)
        luck = rng.standard_normal((PROMPTS, CANDIDATES))
        standing = np.sqrt(LEARNABLE) * features[..., 0] + np.sqrt(1 - LEARNABLE) * luck
        wordy = LENGTH_TELLS * standing + np.sqrt(1 - LENGTH_TELLS**2) * features[..., 1]
        length = np.minimum(LONGEST, TYPICAL_LENGTH * np.exp(LENGTH_SPREAD * wordy))
        squared = 2 * np.mean(length**2) + 2 * np.mean(length) ** 2
        return cls(features, MIDDLE + SPREAD * standing, length, float(np.sqrt(squared)))

    def probabilities(self, theta_D: Array) -> Array:
        """pi, X x M."""
        logits_XM = (self.features_XMD @ theta_D.astype(np.float32)).astype(np.float64)
        unnormalised_XM = np.exp(logits_XM - logits_XM.max(axis=1, keepdims=True))
        return unnormalised_XM / unnormalised_XM.sum(axis=1, keepdims=True)

    def mean_truth(self, pi_XM: Array) -> float:
        """J, in points."""
        return float(np.mean(np.sum(pi_XM * self.quality_XM, axis=1)))

    def gradient(self, pi_XM: Array) -> Array:
        """grad J, D."""
        weighted_XM = pi_XM * (self.quality_XM - np.sum(pi_XM * self.quality_XM, axis=1, keepdims=True))
        return np.einsum("xm,xmd->d", weighted_XM, self.features_XMD) / len(pi_XM)


@dataclass(frozen=True)
class JudgedGroup:
    """`ascent_D`: sum of advantage x grad log pi over the `num_scored` completions that have an advantage.

    `true_ascent_D`: over all completions, were the scores the qualities. `tokens`: the judge's.
    """

    ascent_D: Array
    true_ascent_D: Array
    num_scored: int
    tokens: float
    num_calls: int
    scores: Sequence[float | None]
    truths: Sequence[float]


class Sampler:
    """Draws groups from a policy and has them judged. Two samplers of the same seed draw the same."""

    def __init__(self, world: World, bench: Bench, way: Way, num: int, seed: str) -> None:
        self._world, self._bench, self._way, self._num = world, bench, way, num
        self._scores = way.scorer()
        self._rng = random.Random(seed)

    def policy(self, theta_D: Array) -> Array:
        """Draws from that one from now on. Returns pi."""
        pi_XM = self._world.probabilities(theta_D)
        self._pi_XM = pi_XM
        return pi_XM

    def group(self) -> JudgedGroup:
        """One more."""
        world, bench, rng = self._world, self._bench, self._rng
        x = rng.randrange(len(world.quality_XM))
        pi_M = self._pi_XM[x]
        y_K = rng.choices(range(len(pi_M)), weights=pi_M.tolist(), k=self._num)
        truths, lengths = world.quality_XM[x, y_K].tolist(), world.length_XM[x, y_K].tolist()
        calls = self._way.calls(self._num, rng)
        lost = bench.losses(calls, lengths, world.pair_length, rng)
        scores = self._scores(self._num, bench.verdicts(calls, lost, truths, rng))
        steps_KD = world.features_XMD[x, y_K] - pi_M @ world.features_XMD[x]  # grad log pi
        ascent_D, num_scored = _ascent(scores, steps_KD)
        true_ascent_D, _ = _ascent(truths, steps_KD)
        tokens = bench.prompt_tokens(calls, lengths) + bench.output_tokens(calls, lost)
        return JudgedGroup(ascent_D, true_ascent_D, num_scored, tokens, len(calls), scores, truths)


def _ascent(scores_K: Sequence[float | None], steps_KD: Array) -> tuple[Array, int]:
    advantages_K = leave_one_out(scores_K)
    known = [k for k, advantage in enumerate(advantages_K) if advantage is not None]
    return np.array([advantages_K[k] for k in known], dtype=np.float64) @ steps_KD[known], len(known)


def tokens_to_truth(
    sampler: Sampler, world: World, mark: float, rate: float, step_tokens: float, limit: float
) -> float:
    """Judge tokens until RLOO has raised the mean truth to `mark` points. It gives up after `limit` tokens.

    A step takes as many groups as `step_tokens` buy, and divides by their completions that have an advantage. Adam, the
    learner's optimizer, moves each parameter by about `rate` whatever the scores' scale: ways that spread scores more
    widely gain nothing by it.
    """
    theta_D, momentum_D, square_D = np.zeros((3, FEATURES))
    spent, step = 0.0, 0
    while world.mean_truth(sampler.policy(theta_D)) < mark and spent < limit:
        step += 1
        ascent_D, num_scored = np.zeros(FEATURES), 0
        while spent < step * step_tokens:
            group = sampler.group()
            ascent_D += group.ascent_D
            num_scored += group.num_scored
            spent += group.tokens
        gradient_D = ascent_D / max(1, num_scored)
        momentum_D = BETAS[0] * momentum_D + (1 - BETAS[0]) * gradient_D
        square_D = BETAS[1] * square_D + (1 - BETAS[1]) * gradient_D**2
        mean_D, mean_square_D = momentum_D / (1 - BETAS[0] ** step), square_D / (1 - BETAS[1] ** step)
        theta_D = theta_D + rate * mean_D / (np.sqrt(mean_square_D) + 1e-8)
    return spent
