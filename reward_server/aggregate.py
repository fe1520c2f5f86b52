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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wire.judgement import PlacedVerdict

LOWEST_SCORE = 1.0  # of a completion that gives the judge nothing to judge
NEUTRAL_RANKING = 3.5  # midway between 3 (the first slightly better) and 4 (the second); never given
TIE_BREAK = 0.08  # points a ranking step is worth
TIE_BREAK_LIMIT = 0.1  # see the proof above


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
    r"""The scores that fit the differences within verdicts best, p being estimated beside them and taken out.

    The model is s1 - s2 = q_i - q_j + p + error, with ties broken in s1 and s2: a mood of the judge that moves both
    scores of a verdict drops out. Over V verdicts on n completions this is d = X (q, p) + error, where a row of X holds
    1 at i, -1 at j and 1 at p. X^+ d, with X^+ the pseudo-inverse, is the solution whose q sum to 0. The level, which
    differences do not tell, comes from the individual scores: it is the mean over verdicts of (s1 + s2) / 2 less what
    the two q of the verdict account for, and a liking of p/2 for place 1 and -p/2 for place 2 cancels in that sum.

    The standard error of q_i is sqrt(sigma^2 [X^+ X^+']_ii), where sigma^2 is the sum of squared residuals over the
    V - n degrees of freedom, and None where V = n (a ring fits exactly). It is the error against the group's level; the
    level's own is common to all scores and leaves the advantages alone.

    Scores are those of the largest set of completions that verdicts connect. The others have none, and nobody has any
    where two sets are equally large: differences between sets are unknown. Nor has anybody where p cannot be told from
    quality, i.e. X has a rank below n: all cycles of comparisons go as often with as against the order of places (a
    path, a ring with a hole). A completion judged alone counts by itself where there is no comparison.

    No score is below `LOWEST_SCORE`, for the same reason as in `mean_scores`. Above 5 they are let be, as a completion
    that beats one with a 5 should: to cut them off would take back differences that the judge did see.

    Sources: Jiang, Lim, Yao and Ye, "Statistical ranking and combinatorial Hodge theory", Math. Program. 127 (2011),
    arXiv 0811.1067, for least squares over the differences of an incomplete set of pairs; Scheffe, "An analysis of
    variance for paired comparisons", JASA 47 (1952), for the effect of the order within a pair.
    """
    pairs = [v for v in placed if v.second is not None and v.verdict.scores is not None]
    if not pairs:
        return Scores(mean_scores(num, placed, tie_break=tie_break).scores, (None,) * num)
    members = _largest_connected(num, pairs)
    design, said = _system(members, [v for v in pairs if v.first in members], tie_break)
    if not members or np.linalg.matrix_rank(design) < len(members):
        return Scores((None,) * num, (None,) * num)
    differences = said[:, 0] - said[:, 1]
    inverse = np.linalg.pinv(design)
    fitted = inverse @ differences
    level = np.mean(said.mean(axis=1) - np.abs(design[:, :-1]) @ fitted[:-1] / 2)
    freedom = len(said) - len(members)
    variance = float(np.sum((differences - design @ fitted) ** 2)) / freedom if freedom else None
    scores: list[float | None] = [None] * num
    errors: list[float | None] = [None] * num
    for column, k in enumerate(members):
        scores[k] = max(LOWEST_SCORE, float(level + fitted[column]))
        if variance is not None:
            errors[k] = float(np.sqrt(variance * np.sum(inverse[column] ** 2)))
    return Scores(tuple(scores), tuple(errors))


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


def _system(
    members: list[int], pairs: Sequence[PlacedVerdict], tie_break: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """X (verdicts x members and p) and the two individual scores of each verdict, ties broken (verdicts x 2)."""
    column = {k: index for index, k in enumerate(members)}
    design = np.zeros((len(pairs), len(members) + 1))
    said = np.zeros((len(pairs), 2))
    for row, v in enumerate(pairs):
        assert v.second is not None and v.verdict.scores is not None
        design[row, [column[v.first], column[v.second], -1]] = 1, -1, 1
        said[row] = _untied(v.verdict.scores, v.verdict.ranking, tie_break)
    return design, said


def _largest_connected(num: int, pairs: Sequence[PlacedVerdict]) -> list[int]:
    """The largest set of completions that the pairs connect; empty where two are equally large."""
    label = list(range(num))
    for v in pairs:
        assert v.second is not None
        old, new = label[v.first], label[v.second]
        label = [new if there == old else there for there in label]
    sets = sorted((sum(there == name for there in label), name) for name in set(label))
    if len(sets) > 1 and sets[-1][0] == sets[-2][0]:
        return []
    return [k for k in range(num) if label[k] == sets[-1][1]]
