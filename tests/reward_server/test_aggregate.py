"""From verdicts to scores, by identities."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_server.aggregate import LOWEST_SCORE, TIE_BREAK, TIE_BREAK_LIMIT, scores_from_verdicts
from reward_server.pairings import ring
from wire.judgement import PlacedVerdict, Verdict

SCORE = st.integers(1, 5)
PAIR = st.tuples(SCORE, SCORE, st.integers(1, 6))


def placed(first, second, scores, ranking=None, missing=None):
    scores = None if missing else tuple(map(float, scores))
    return PlacedVerdict(first=first, second=second, verdict=Verdict(scores=scores, ranking=ranking, missing=missing))


def full_ring(order, pairs):
    following = order[1:] + order[:1]
    return [placed(a, b, pair[:2], pair[2]) for a, b, pair in zip(order, following, pairs, strict=True)]


@st.composite
def rings(draw, min_size=2):
    num = draw(st.integers(min_size, 6))
    order = draw(st.permutations(range(num)))
    return full_ring(order, draw(st.lists(PAIR, min_size=num, max_size=num)))


@given(verdicts=rings(), names=st.randoms())
def test_renaming_the_completions_renames_the_scores(verdicts, names: random.Random):
    num = len(verdicts)
    new = list(range(num))
    names.shuffle(new)
    renamed = [v.model_copy(update={"first": new[v.first], "second": new[v.second]}) for v in verdicts]
    names.shuffle(renamed)
    scores = scores_from_verdicts(num, verdicts, TIE_BREAK, ())
    moved = scores_from_verdicts(num, renamed, TIE_BREAK, ())
    assert [moved[new[k]] for k in range(num)] == pytest.approx(scores)


@given(num=st.integers(2, 8), seed=st.integers(0, 99), bias=st.floats(-1, 1), data=st.data())
def test_a_liking_for_one_place_cancels_in_a_full_ring(num, seed, bias, data):
    worth = data.draw(st.lists(st.floats(2, 4), min_size=num, max_size=num))
    order = ring(num, seed)
    following = order[1:] + order[:1]
    verdicts = [placed(a, b, (worth[a] + bias, worth[b])) for a, b in zip(order, following, strict=True)]
    scores = scores_from_verdicts(num, verdicts, 0.0, ())
    assert [score - scores[0] for score in scores] == pytest.approx([w - worth[0] for w in worth])


@given(verdicts=rings())
def test_a_broken_tie_never_outranks_a_real_point(verdicts):
    num = len(verdicts)
    plain = scores_from_verdicts(num, verdicts, 0.0, ())
    broken = scores_from_verdicts(num, verdicts, TIE_BREAK, ())
    nearly = scores_from_verdicts(num, verdicts, TIE_BREAK_LIMIT - 1e-6, ())
    for a in range(num):
        for b in range(num):
            if plain[a] >= plain[b] + 0.5:
                assert broken[a] > broken[b] and nearly[a] > nearly[b]


def test_the_worst_case_of_the_proof_is_met_at_the_limit():
    verdicts = [placed(0, 2, (4, 4), 6), placed(2, 0, (3, 3), 1), placed(1, 3, (3, 3), 1), placed(3, 1, (3, 3), 6)]
    at_limit = scores_from_verdicts(4, verdicts, TIE_BREAK_LIMIT, ())
    assert at_limit[0] == pytest.approx(at_limit[1]) == pytest.approx(3.25)
    below = scores_from_verdicts(4, verdicts, TIE_BREAK, ())
    assert below[0] == pytest.approx(3.3) and below[1] == pytest.approx(3.2)


@given(score=SCORE, ranking=st.integers(1, 3))
def test_a_tie_is_broken_towards_the_ranking_and_by_as_much_either_way(score, ranking):
    verdicts = [placed(0, 1, (score, score), ranking), placed(1, 0, (score, score), 7 - ranking)]
    better, worse = scores_from_verdicts(2, verdicts, TIE_BREAK, ())
    assert better == pytest.approx(score + TIE_BREAK * (3.5 - ranking))
    assert worse == pytest.approx(max(LOWEST_SCORE, score - TIE_BREAK * (3.5 - ranking)))


def test_unequal_scores_are_not_touched_by_the_ranking():
    verdicts = [placed(0, 1, (5, 1), 6), placed(1, 0, (2, 4), 1)]
    assert scores_from_verdicts(2, verdicts, TIE_BREAK, ()) == [4.5, 1.5]


@given(verdicts=rings(min_size=3), data=st.data())
def test_a_missing_verdict_takes_the_score_of_the_two_it_touches_and_of_nobody_else(verdicts, data):
    num, hole = len(verdicts), data.draw(st.integers(0, len(verdicts) - 1))
    touched = {verdicts[hole].first, verdicts[hole].second}
    whole = scores_from_verdicts(num, verdicts, TIE_BREAK, ())
    holed = [*verdicts]
    holed[hole] = placed(verdicts[hole].first, verdicts[hole].second, (), missing="timeout")
    expected = [None if k in touched else whole[k] for k in range(num)]
    assert scores_from_verdicts(num, holed, TIE_BREAK, ()) == expected
    assert scores_from_verdicts(num, holed[:hole] + holed[hole + 1 :], TIE_BREAK, ()) == expected


def test_a_judgement_of_one_alone_counts_by_itself_and_the_unjudged_get_the_lowest_score():
    verdicts = [placed(1, None, (4,))]
    assert scores_from_verdicts(3, verdicts, TIE_BREAK, (0, 2)) == [LOWEST_SCORE, 4.0, LOWEST_SCORE]
    assert scores_from_verdicts(1, [placed(0, None, (), missing="unreadable")], TIE_BREAK, ()) == [None]


def test_a_judged_completion_never_scores_below_an_unjudged_one():
    verdicts = [placed(0, 1, (1, 1), 6), placed(1, 0, (1, 1), 1)]
    loser, winner, empty = scores_from_verdicts(3, verdicts, TIE_BREAK, (2,))
    assert winner > loser >= empty
