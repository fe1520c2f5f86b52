"""From the verdicts of a group to one score a completion. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from wire.judgement import PlacedVerdict

LOWEST_SCORE = 1.0  # of a completion that gives the judge nothing to judge
NEUTRAL_RANKING = 3.5  # midway between 3 (the first slightly better) and 4 (the second); never given
TIE_BREAK = 0.08
TIE_BREAK_LIMIT = 0.1  # see scores_from_verdicts


def scores_from_verdicts(
    num: int, placed_verdicts: Sequence[PlacedVerdict], tie_break: float, unjudged: Collection[int]
) -> list[float | None]:
    r"""The score of each of `num` completions: the mean of its individual scores, ties broken by the ranking.

    A verdict (s1, s2, r) with s1 = s2 counts as s1 + t (3.5 - r) and s2 - t (3.5 - r), t being `tie_break`; one with
    s1 != s2 counts as it is. A completion has a score only when it has as many verdicts in place 1 as in place 2:
    with a hole in the ring the judge's liking for one place no longer cancels, and the score is None. A judgement of
    one completion alone has no place and counts by itself. Unjudged completions get `LOWEST_SCORE`, and no judged
    one gets less, though a lost tie between two lowest scores would.

    A broken tie never outranks a real point. Let A and B have two verdicts each and let A's individual scores sum to
    at least one point more than B's, so that A's mean leads by at least 1/2. As \|3.5 - r\| <= 2.5, breaking ties
    moves a verdict by at most 2.5 t, hence a mean of two by at most 2.5 t, and A's lead by at most 5 t. For
    t < `TIE_BREAK_LIMIT` = 1/10 that is less than 1/2: A stays ahead. The floor keeps this, for A's mean is at least
    3/2 - 2.5 t > 1, so it can lift B's mean only, and only to 1.

    Args:
        num: completions in the group (K).
        placed_verdicts: who was judged in which place, and what was said.
        tie_break: points a ranking step is worth.
        unjudged: completions that were not shown to the judge.
    """
    in_place: tuple[list[list[float]], ...] = tuple([[] for _ in range(num)] for _ in range(2))
    alone: list[list[float]] = [[] for _ in range(num)]
    for placed in placed_verdicts:
        if placed.verdict.scores is None:
            continue
        if placed.second is None:
            alone[placed.first].append(placed.verdict.scores[0])
            continue
        first, second = _untied(placed.verdict.scores, placed.verdict.ranking, tie_break)
        in_place[0][placed.first].append(first)
        in_place[1][placed.second].append(second)
    return [LOWEST_SCORE if k in unjudged else _score(in_place[0][k], in_place[1][k], alone[k]) for k in range(num)]


def _untied(scores: tuple[float, ...], ranking: int | None, tie_break: float) -> tuple[float, float]:
    first, second = scores
    if first != second or ranking is None:
        return first, second
    shift = tie_break * (NEUTRAL_RANKING - ranking)
    return first + shift, second - shift


def _score(in_first: list[float], in_second: list[float], alone: list[float]) -> float | None:
    counted = in_first + in_second + alone
    if not counted or len(in_first) != len(in_second):
        return None
    return max(LOWEST_SCORE, sum(counted) / len(counted))
