"""Pairs in both orders: the winner, and what is counted over many."""

from itertools import product

import pytest

from reward_server.agreement import Figures, JudgedPair
from reward_server.preferences import PreferencePair
from wire.judgement import Message, Verdict

CONVERSATION = (Message(role="user", content="sea?"),)
MISSING = Verdict(missing="unreadable")


def judged(first, second, preference=-1, scores=(4, 2)):
    in_place = zip((first, second), (scores, scores[::-1]), strict=True)
    verdicts = [v if isinstance(v, Verdict) else Verdict(ranking=v, scores=given) for v, given in in_place]
    return JudgedPair(PreferencePair(CONVERSATION, "a", "b", preference), *verdicts)


def test_the_lean_changes_its_sign_when_the_responses_change_their_names():
    for in_order, turned in product(range(1, 7), repeat=2):
        assert judged(in_order, turned).lean == -judged(turned, in_order).lean


@pytest.mark.parametrize("ranking", range(1, 7))
def test_a_judge_that_likes_a_place_has_no_winner_and_one_that_does_not_keeps_its_own(ranking):
    assert judged(ranking, ranking).lean == 0
    assert judged(ranking, 7 - ranking).lean == ranking - 3.5


def test_the_liking_for_a_place_cancels_whatever_its_strength():
    assert {judged(2 - liking, 5 - liking).lean for liking in (0, 1)} == {-1.5}


@pytest.mark.parametrize(
    ("pair", "agrees"),
    [
        (judged(1, 6, preference=-3), True),
        (judged(1, 6, preference=2), False),
        (judged(6, 1, preference=1), True),
        (judged(1, 6, preference=0), None),
        (judged(3, 3, preference=-3), None),
        (judged(1, MISSING), None),
        (judged(MISSING, 6), None),
    ],
)
def test_judge_and_people_agree_where_both_have_a_winner_and_it_is_one(pair, agrees):
    assert pair.agrees is agrees


def test_figures_count_what_is_there_to_count():
    both = [
        judged(1, 6, preference=-2),  # right
        judged(1, 6, preference=3),  # wrong
        judged(1, 1, preference=-1),  # flips, undecided; its second verdict contradicts its scores
        judged(1, 2, preference=-1),  # flips, and leans to response 1; contradicts too
        judged(6, 6, preference=0, scores=(3, 3)),  # ties; flips, undecided
        judged(MISSING, 4),
    ]
    figures = Figures.of(both)
    assert (figures.num_pairs, figures.num_both_orders, figures.num_verdicts) == (6, 5, 12)
    assert figures.agreement == 2 / 3 and figures.num_compared == 3
    assert figures.flip_share == 3 / 5 and figures.undecided_share == 2 / 5
    assert figures.tie_share == 2 / 11
    assert figures.contradiction_share == 2 / 11
    assert figures.unreadable_share == figures.missing_share == 1 / 12
    assert figures.reasons == "unreadable 1"


def test_of_nothing_every_share_is_unknown():
    figures = Figures.of([])
    shares = (figures.agreement, figures.flip_share, figures.tie_share, figures.contradiction_share)
    assert shares == (None,) * 4 and figures.missing_share is None and figures.reasons == "none"


def test_seconds_and_tokens_are_means_of_a_verdict():
    verdicts = [Verdict(ranking=1, scores=(4, 2), seconds=s, completion_tokens=10 * s) for s in (1, 2, 3, 6)]
    figures = Figures.of([judged(*verdicts[:2]), judged(*verdicts[2:])])
    assert (figures.seconds, figures.tokens) == (3.0, 30.0)
