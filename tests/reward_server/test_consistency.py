"""Does the judge agree with itself? By tables and by enumeration."""

from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_server.consistency import cycles, flipped, flips, swapped
from wire.judgement import PlacedVerdict, Verdict

RANKING = st.integers(1, 6)


def ranked(first, second, ranking, vote=0):
    missing = "timeout" if ranking is None else None
    verdict = Verdict(scores=None if missing else (3.0, 3.0), ranking=ranking, missing=missing)
    return PlacedVerdict(first=first, second=second, vote=vote, verdict=verdict)


@given(RANKING)
def test_swapping_twice_changes_nothing_and_once_turns_the_preference(ranking):
    assert swapped(swapped(ranking)) == ranking
    assert (swapped(ranking) <= 3) != (ranking <= 3)


@given(RANKING)
def test_a_verdict_agrees_with_its_own_swap_and_not_with_itself(ranking):
    assert flipped(Verdict(ranking=ranking), Verdict(ranking=swapped(ranking))) is False
    assert flipped(Verdict(ranking=ranking), Verdict(ranking=ranking)) is True
    assert flipped(Verdict(ranking=ranking), Verdict(missing="timeout")) is None


def test_only_pairs_with_a_verdict_in_both_orders_are_comparable():
    placed = [
        ranked(0, 1, 2),
        ranked(1, 0, 3),  # prefers 1: flipped
        ranked(0, 2, 1),
        ranked(2, 0, 4),  # prefers 0 as before
        ranked(1, 2, 5),  # one order only
        ranked(0, 3, 1),
        ranked(3, 0, None),  # missing
        PlacedVerdict(first=3, second=None, verdict=Verdict(scores=(3.0,))),
    ]
    assert flips(placed) == flips(placed[::-1]) == (1, 2)


def test_each_vote_is_compared_with_the_vote_of_its_number():
    votes = [ranked(0, 1, 1, vote=0), ranked(1, 0, 6, vote=0), ranked(0, 1, 1, vote=1), ranked(1, 0, 1, vote=1)]
    assert flips(votes) == (1, 2)
    assert flips([*votes, ranked(0, 1, 2, vote=2)]) == (1, 2)


@pytest.mark.parametrize("preferences", [*product((True, False), repeat=3)])
def test_a_triple_is_a_cycle_when_no_order_of_the_three_agrees_with_it(preferences):
    pairs = [(0, 1), (1, 2), (2, 0)]
    placed = [ranked(a, b, 2 if first else 5) for (a, b), first in zip(pairs, preferences, strict=True)]
    wins = {(a, b) if first else (b, a) for (a, b), first in zip(pairs, preferences, strict=True)}
    explained = any(all(order.index(a) < order.index(b) for a, b in wins) for order in permutations(range(3)))
    assert cycles(placed) == (int(not explained), 1)


def test_an_incomplete_triple_or_one_with_a_draw_is_not_judged():
    assert cycles([ranked(0, 1, 1), ranked(1, 2, 1)]) == (0, 0)
    assert cycles([ranked(0, 1, 1), ranked(1, 2, 1), ranked(2, 0, None)]) == (0, 0)
    draw = [ranked(2, 0, 2), ranked(0, 2, 2)]
    assert cycles([ranked(0, 1, 1), ranked(1, 2, 1), *draw]) == (0, 0)
    assert cycles([ranked(0, 1, 1), ranked(1, 2, 1), *draw, ranked(2, 0, 3, vote=1)]) == (1, 1)


@given(st.lists(RANKING, min_size=10, max_size=10), st.permutations(range(5)))
def test_renaming_changes_no_count_and_a_judge_with_an_order_in_mind_makes_no_cycle(rankings, names):
    pairs = [(a, b) for a in range(5) for b in range(a)]
    placed = [ranked(a, b, ranking) for (a, b), ranking in zip(pairs, rankings, strict=True)]
    renamed = [ranked(names[v.first], names[v.second], v.verdict.ranking) for v in placed]
    assert cycles(renamed) == cycles(placed) and cycles(placed)[1] == 10
    assert cycles([ranked(a, b, 2 if names[a] < names[b] else 5) for a, b in pairs]) == (0, 10)
