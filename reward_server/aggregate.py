r"""From the verdicts of a group to one score a completion. Pure arithmetic.

Symbols: a verdict v on the pair (i, j), i in place 1, has individual scores s1, s2 and a ranking r; q_i is the score
sought; p is the judge's liking for place 1, a number of points that is the same in every verdict; t is the tie-break.

Ties. A verdict with s1 = s2 counts as s1 + t (3.5 - r) and s2 - t (3.5 - r); one with s1 != s2 counts as it is.

A broken tie never outranks a real point. Breaking ties moves a score within a verdict by at most 2.5 t, as
\|3.5 - r\| <= 2.5. A mean over any number of verdicts moves by no more, and so does the mean of two such means; the
lead of one completion over another moves by at most 5 t. For t < `TIE_BREAK_LIMIT` = 1/10 that is less than 1/2, which
is what a real point is worth in the mean of two places: a lead of half a point before ties are broken is a lead after.
With several votes that is a point in the mean of a place's votes; one that a single vote saw weighs as much less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wire.judgement import PlacedVerdict

LOWEST_SCORE = 1.0  # of a completion that gives the judge nothing to judge
NEUTRAL_RANKING = 3.5  # midway between 3 (the first slightly better) and 4 (the second); never given
TIE_BREAK = 0.08  # points a ranking step is worth
TIE_BREAK_LIMIT = 0.1  # see the proof above
SCORE_DECIMALS = 9  # a pseudo-inverse leaves noise of 1e-15, by which completions of equal worth would differ
SUM_WEIGHT = 1 / 3  # of a verdict's sum against its difference: right where moods are as large as the noise of a score


@dataclass(frozen=True)
class Scores:
    """One score a completion, None where missing, and their standard errors in points where the aggregation has any."""

    scores: tuple[float | None, ...]
    standard_errors: tuple[float | None, ...] | None = None


class Aggregation(Protocol):
    """From the verdicts on some of `num` completions to their scores."""

    def __call__(self, num: int, placed: Sequence[PlacedVerdict], *, tie_break: float) -> Scores: ...


def mean_scores(num: int, placed: Sequence[PlacedVerdict], *, tie_break: float) -> Scores:
    """A completion's score is the mean of its mean in place 1 and its mean in place 2.

    So p adds p / 2 to every score, however many verdicts either place has, and leaves the differences. A completion
    that lacks one place has no score: there p would not cancel. A judgement of one completion alone has no place and
    counts by itself. No score is below `LOWEST_SCORE`, though a lost tie between two lowest ones would be: a completion
    that was judged is never worth less than one that gave nothing to judge. The proof above survives this floor, for
    the leader's mean is at least 3/2 - 2.5 t > 1, so the floor lifts the other only, and only to 1.
    """
    in_place: tuple[list[list[float]], ...] = tuple([[] for _ in range(num)] for _ in range(2))
    alone: list[list[float]] = [[] for _ in range(num)]
    for verdict in placed:
        if verdict.verdict.scores is None:
            continue
        if verdict.second is None:
            alone[verdict.first].append(verdict.verdict.scores[0])
            continue
        first, second = _untied(verdict.verdict.scores, verdict.verdict.ranking, tie_break)
        in_place[0][verdict.first].append(first)
        in_place[1][verdict.second].append(second)
    return Scores(tuple(_mean_of_places(in_place[0][k], in_place[1][k], alone[k]) for k in range(num)))


def least_squares_scores(num: int, placed: Sequence[PlacedVerdict], *, tie_break: float) -> Scores:
    r"""The scores that fit differences and sums of the verdicts best, p being estimated beside them and taken out.

    With ties broken in s1 and s2, a verdict gives two equations, whose errors are uncorrelated:

        s1 - s2 = q_i - q_j + p + e,        variance of e = 2 sigma^2
        s1 + s2 = q_i + q_j     + f,        variance of f = 2 sigma^2 + 4 tau^2

    sigma is the noise of each individual score and tau that of a mood of the judge that moves both scores of a verdict
    alike. The differences compare, free of moods; the sums are the anchor: they hold the level, tie together what no
    difference connects, and are free of p when it counts as p/2 in place 1 and -p/2 in place 2. A sum has the weight
    w = `SUM_WEIGHT` of a difference; best would be 1 / (1 + 2 tau^2 / sigma^2), which 2 K scores are too few to tell.

    With A the 2 V equations of V verdicts in n completions and p, those of the sums multiplied by sqrt(w), and y their
    left sides, (q, p) = A^+ y, A^+ being the pseudo-inverse. Two solutions that fit the same verdicts differ by -c/2 in
    all that stood in place 1, by c/2 in all that stood in place 2 and by c in p. So once any completion stood in both
    places, c is 0: place is told from quality, and every completion in a verdict has a score, holes or no holes. Where
    none did, nobody has a score. The standard error of q_k is sqrt(s^2 [(A'A)^+]_kk), s^2 being the sum of squared
    residuals over the 2 V - n - 1 degrees of freedom, and None where there are none.

    A completion judged alone counts by itself where there is no comparison. No score is below `LOWEST_SCORE`, for the
    reason given at `mean_scores`. Above 5 scores are let be: to cut them off would take back differences seen.

    Sources: Jiang, Lim, Yao and Ye, "Statistical ranking and combinatorial Hodge theory", Math. Program. 127 (2011),
    arXiv 0811.1067: least squares over the differences of an incomplete set of pairs. Scheffe, "An analysis of variance
    for paired comparisons", JASA 47 (1952): the effect of the order within a pair. Yates, "The recovery of inter-block
    information in balanced incomplete block designs", Ann. Eugenics 10 (1940): the weight of sums, a verdict being a
    block of two.
    """
    pairs = [v for v in placed if v.second is not None and v.verdict.scores is not None]
    if not pairs:
        return Scores(mean_scores(num, placed, tie_break=tie_break).scores, (None,) * num)
    compared = [(v.first, v.second) for v in pairs if v.second is not None]
    if not {first for first, _ in compared} & {second for _, second in compared}:
        return Scores((None,) * num, (None,) * num)
    judged = list(dict.fromkeys(k for pair in compared for k in pair))
    fit = _fit_of(tuple((judged.index(first), judged.index(second)) for first, second in compared))
    said = _said(pairs, tie_break)
    fitted = np.round(fit.inverse @ said, SCORE_DECIMALS)
    scores: dict[int, float] = dict(zip(judged, np.maximum(fitted[:-1], LOWEST_SCORE).tolist(), strict=True))
    errors: dict[int, float] = {}
    if freedom := len(said) - len(judged) - 1:
        residuals = said - fit.equations @ fitted
        sigma = math.sqrt(float(residuals @ residuals) / freedom)
        errors = dict(zip(judged, (sigma * fit.spread).tolist(), strict=True))
    return Scores(tuple(map(scores.get, range(num))), tuple(map(errors.get, range(num))))


AGGREGATIONS: dict[str, Aggregation] = {"mean": mean_scores, "least_squares": least_squares_scores}


def _untied(scores: tuple[float, ...], ranking: int | None, tie_break: float) -> tuple[float, float]:
    first, second = scores
    if first != second or ranking is None:
        return first, second
    shift = tie_break * (NEUTRAL_RANKING - ranking)
    return first + shift, second - shift


def _mean_of_places(in_first: list[float], in_second: list[float], alone: list[float]) -> float | None:
    if in_first and in_second:
        return max(LOWEST_SCORE, (_mean(in_first) + _mean(in_second)) / 2)
    return _mean(alone) if alone else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class _Fit:
    """What of a fit does not depend on what was said: A (2 V x n + 1, p last), A^+, and the root of the diagonal of
    (A'A)^+ without p's."""

    equations: NDArray[np.float64]
    inverse: NDArray[np.float64]
    spread: NDArray[np.float64]


@lru_cache(maxsize=1024)
def _fit_of(pairs: tuple[tuple[int, int], ...]) -> _Fit:
    """The fit of verdicts on these pairs of completions, numbered as they first appear.

    It is kept, for a pseudo-inverse takes longer than all else that is done with a group's scores, and so numbered the
    groups of a run have few designs.
    """
    num = 1 + max(map(max, pairs))
    difference, total = np.zeros((2, len(pairs), num + 1))
    for row, (first, second) in enumerate(pairs):
        difference[row, [first, second, -1]] = 1, -1, 1
        total[row, [first, second]] = 1
    equations = np.concatenate([difference, math.sqrt(SUM_WEIGHT) * total])
    inverse = np.linalg.pinv(equations, rcond=1e-9)
    return _Fit(equations, inverse, np.sqrt(np.sum(inverse[:-1] ** 2, axis=1)))


def _said(pairs: Sequence[PlacedVerdict], tie_break: float) -> NDArray[np.float64]:
    """y (2 V): first the differences of all verdicts, then their weighted sums."""
    untied = [_untied(v.verdict.scores or (), v.verdict.ranking, tie_break) for v in pairs]
    weight = math.sqrt(SUM_WEIGHT)
    return np.array([a - b for a, b in untied] + [weight * (a + b) for a, b in untied])
