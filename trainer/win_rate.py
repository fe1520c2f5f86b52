"""How often the trained policy beats the one before training. Pure arithmetic.

Symbols: y_i is the outcome of prompt i for the current policy: 1 it won, 0 it lost, 1/2 where the judge was undecided
or the two orders of the answers contradict one another. d_i is the length of its answer less that of the initial one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev

Z_95 = 1.959964  # two-sided 95 % of a normal distribution
LENGTH_RIDGE = 0.1  # precision of the prior of phi: worth less than one prompt
MOST_NEWTON_STEPS = 50
SMALL_STEP = 1e-10  # of the parameters, in log-odds


def win_rate(outcomes: Sequence[float]) -> float:
    """The mean outcome, 0..1: a draw counts half. There must be at least one."""
    return fmean(outcomes)


def wilson_interval(rate: float, num: int) -> tuple[float, float]:
    """(low, high) of the 95 % confidence interval of a rate over `num` prompts.

    Wilson's interval, and no bootstrap: it stays sensible where all prompts have one outcome, where a bootstrap over
    prompts has no width at all, and it needs no random numbers. It takes the outcomes for 0 or 1. Draws vary less than
    that, so with them it is somewhat wide, never too narrow. It speaks of the choice of prompts and of chance in the
    answers and verdicts, not of a judge that errs always in the same direction.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    z2 = Z_95 * Z_95
    centre = (rate + z2 / (2 * num)) / (1 + z2 / num)
    half = Z_95 / (1 + z2 / num) * math.sqrt(rate * (1 - rate) / num + z2 / (4 * num * num))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """(low, high) of the 95 % confidence interval of a mean difference of two outcomes of the same prompts, each -1..1.

    Wald's interval after half a prompt of each of the four kinds (both won, both lost, either alone) is added, which
    keeps a few prompts that happen to agree from being taken for certainty. There must be at least one.

    Source: Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in
    Medicine 24 (2005).
    """
    num = len(differences) + 2
    centre = sum(differences) / num
    variance = (sum(value * value for value in differences) + 1) / num - centre * centre
    half = Z_95 * math.sqrt(variance / num)
    return max(-1.0, centre - half), min(1.0, centre + half)


def score_interval(differences: Sequence[float]) -> tuple[float, float]:
    """(low, high) of the 95 % confidence interval of a mean difference in points of score, over prompts.

    Wald's interval, with an addition of this project's own: a square of one point goes to the sum of squares, so that a
    few prompts that happen to agree are no certainty here either. There must be at least one difference.
    """
    centre = fmean(differences)
    squares = sum((value - centre) ** 2 for value in differences) + 1
    half = Z_95 * math.sqrt(squares / max(1, len(differences) - 1) / len(differences))
    return centre - half, centre + half


def length_controlled_win_rate(outcomes: Sequence[float], length_differences: Sequence[float]) -> float:
    r"""The win rate that the policy would have with answers as long as the initial ones.

    The outcomes are fitted by

        P(y_i = 1) = sigma(theta + phi x_i),        x_i = tanh(d_i / std(d))

    and the length's part is then left out: sigma(theta). x is not centred, so that x = 0 means equal lengths. A draw is
    half a win and half a loss. Where all outcomes are alike, or all differences, length cannot be told from quality,
    and the win rate itself is returned.

    Source: Dubois, Galambosi, Liang and Hashimoto, "Length-controlled AlpacaEval", arXiv 2404.04475, without its term
    for the difficulty of a prompt, which takes many policies to estimate. The ridge on phi keeps it finite where length
    tells wins from losses without an error.
    """
    rate, spread = win_rate(outcomes), pstdev(length_differences)
    if rate in (0.0, 1.0) or spread == 0:
        return rate
    theta, _ = _fit(outcomes, [math.tanh(difference / spread) for difference in length_differences])
    return _sigmoid(theta)


def _fit(outcomes: Sequence[float], x: Sequence[float]) -> tuple[float, float]:
    """(theta, phi) of the largest penalised likelihood, by Newton's method with halved steps.

    The likelihood is strictly concave: the outcomes are not all alike, and phi has a prior.
    """
    theta = phi = 0.0
    best = _objective(outcomes, x, theta, phi)
    for _ in range(MOST_NEWTON_STEPS):
        step_theta, step_phi = _newton_step(outcomes, x, theta, phi)
        while (found := _objective(outcomes, x, theta + step_theta, phi + step_phi)) < best:
            step_theta, step_phi = step_theta / 2, step_phi / 2
            if max(abs(step_theta), abs(step_phi)) < SMALL_STEP:
                return theta, phi
        theta, phi, best = theta + step_theta, phi + step_phi, found
        if max(abs(step_theta), abs(step_phi)) < SMALL_STEP:
            break
    return theta, phi


def _newton_step(outcomes: Sequence[float], x: Sequence[float], theta: float, phi: float) -> tuple[float, float]:
    """-H^-1 g of the 2 x 2 problem."""
    chances = [_sigmoid(theta + phi * value) for value in x]
    weights = [chance * (1 - chance) for chance in chances]
    g_theta = sum(y - chance for y, chance in zip(outcomes, chances, strict=True))
    g_phi = sum((y - chance) * value for y, chance, value in zip(outcomes, chances, x, strict=True))
    g_phi -= LENGTH_RIDGE * phi
    h_tt = sum(weights)
    h_tp = sum(weight * value for weight, value in zip(weights, x, strict=True))
    h_pp = sum(weight * value * value for weight, value in zip(weights, x, strict=True)) + LENGTH_RIDGE
    determinant = h_tt * h_pp - h_tp * h_tp
    return (h_pp * g_theta - h_tp * g_phi) / determinant, (h_tt * g_phi - h_tp * g_theta) / determinant


def _objective(outcomes: Sequence[float], x: Sequence[float], theta: float, phi: float) -> float:
    # log sigma(l) = l - log(1 + e^l), log(1 - sigma(l)) = -log(1 + e^l)
    logits = [theta + phi * value for value in x]
    return (
        sum(y * logit - _softplus(logit) for y, logit in zip(outcomes, logits, strict=True))
        - LENGTH_RIDGE * phi * phi / 2
    )


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
