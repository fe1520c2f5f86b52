"""Whether the judge agrees with itself within a group: over the two orders of a pair, and around three pairs.

A preference is read from the ranking r. Seen from the other side it is 7 - r: 1 and 6, 2 and 5, 3 and 4 change places.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from wire.judgement import PlacedVerdict, Verdict

_NEUTRAL = 3.5


def swapped(ranking: int) -> int:
    """The ranking of the same preference with the two responses in each other's place."""
    return 7 - ranking


def flipped(verdict: Verdict, other: Verdict) -> bool | None:
    """Whether two verdicts on one pair, the second with the places swapped, prefer different responses.

    None where either has no ranking.
    """
    if verdict.ranking is None or other.ranking is None:
        return None
    return (verdict.ranking < _NEUTRAL) != (swapped(other.ranking) < _NEUTRAL)


def flips(placed: Sequence[PlacedVerdict]) -> tuple[int, int]:
    """(flipped, comparable): pairs that were judged in both orders, each vote with the vote of the same number."""
    verdicts = {(v.first, v.second, v.vote): v.verdict for v in placed if v.second is not None}
    outcomes = [
        flipped(verdict, verdicts[second, first, vote])
        for (first, second, vote), verdict in verdicts.items()
        if second is not None and first < second and (second, first, vote) in verdicts
    ]
    return outcomes.count(True), len(outcomes) - outcomes.count(None)


def cycles(placed: Sequence[PlacedVerdict]) -> tuple[int, int]:
    """(intransitive, judged): triples of completions with a preference in each of their three pairs.

    A pair's preference is by the mean of its rankings, those of swapped verdicts turned round; a draw is none.
    """
    rankings: dict[tuple[int, int], list[int]] = defaultdict(list)
    for v in placed:
        if v.second is not None and v.verdict.ranking is not None:
            in_order = v.first < v.second
            pair = (v.first, v.second) if in_order else (v.second, v.first)
            rankings[pair].append(v.verdict.ranking if in_order else swapped(v.verdict.ranking))
    means = {pair: sum(found) / len(found) for pair, found in rankings.items()}
    prefers_first = {pair: mean < _NEUTRAL for pair, mean in means.items() if mean != _NEUTRAL}
    completions = sorted({k for pair in prefers_first for k in pair})
    intransitive = judged = 0
    for a, b, c in combinations(completions, 3):
        if {(a, b), (b, c), (a, c)} <= prefers_first.keys():
            judged += 1
            # a beats b beats c beats a, or the reverse
            intransitive += prefers_first[a, b] == prefers_first[b, c] != prefers_first[a, c]
    return intransitive, judged
