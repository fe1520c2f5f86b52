"""What the compared ways of judging do, and what they cost."""

import random

import pytest

from benchmarks.planted_judge import NoisyJudge
from benchmarks.signal_schemes import DEFAULT, MATCHING, PUBLISHED, WAYS, Bench, published_scores, ways_for
from reward_server.config import RewardSettings
from reward_server.scheme import Scheme
from wire.judgement import PlacedVerdict, Verdict

FLAWLESS = NoisyJudge(noise=0, mood=0, bias=0)


def placed(first, second, scores, ranking):
    verdict = Verdict(missing="timeout") if scores is None else Verdict(scores=scores, ranking=ranking)
    return PlacedVerdict(first=first, second=second, verdict=verdict)


def test_the_published_ring_breaks_ties_by_whole_ranking_steps_and_fills_in_a_neutral_verdict():
    verdicts = [placed(0, 1, (3, 3), 1), placed(1, 2, (4, 2), 5), placed(2, 0, None, None)]
    assert published_scores(3, verdicts) == [(5.5 + 3) / 2, (0.5 + 4) / 2, (2 + 3) / 2]


def test_the_default_way_is_what_the_service_does_unless_told_otherwise():
    scheme, rng = Scheme.of(RewardSettings()), random.Random(1)
    calls = DEFAULT.calls(4, rng)
    verdicts = Bench().verdicts(calls, [True] + [False] * (len(calls) - 1), [1.6, 2.4, 3.3, 4.2], rng)
    assert DEFAULT.scorer()(4, verdicts) == scheme.scores(4, verdicts).scores
    assert DEFAULT.name in {way.name for way in WAYS}


@pytest.mark.parametrize("num", [2, 4, 8])
def test_every_way_puts_the_completions_in_order_where_the_judge_never_errs(num):
    bench, truths, rng = Bench(FLAWLESS, missing=0), [1 + 4 * k / (num - 1) for k in range(num)], random.Random(1)
    for way in ways_for(num):
        calls = way.calls(num, rng)
        scores = way.scorer()(num, bench.verdicts(calls, [False] * len(calls), truths, rng))
        assert scores[0] < scores[-1], way.name


def test_matching_makes_half_the_rings_calls_and_judges_everyone_once():
    calls = MATCHING.calls(8, random.Random(1))
    assert 2 * len(calls) == len(PUBLISHED.calls(8, random.Random(1)))
    assert sorted(k for pair in calls for k in pair) == list(range(8))


def test_matching_takes_out_the_liking_for_place_1_that_it_has_seen():
    scorer, verdict = MATCHING.scorer(), placed(0, 1, (4, 3), 3)
    assert scorer(2, [verdict]) == [4, 3]
    assert scorer(2, [verdict]) == [3.5, 3.5]
    assert scorer(2, [placed(0, 1, None, None)]) == [None, None]


def test_a_prompt_pays_only_for_what_no_earlier_prompt_of_the_group_began_with():
    bench, lengths = Bench(opening=1000), [10, 200]
    assert bench.prompt_tokens([(0, None), (1, None)], lengths) == 1000 + 10 + 200
    assert bench.prompt_tokens([(0, 1), (1, 0)], lengths) == 1000 + 210 + 210
    assert bench.prompt_tokens([(0, 1), (0, 1)], lengths) == 1000 + 210


def test_an_output_is_shorter_for_one_response_and_runs_to_the_limit_where_the_verdict_is_lost():
    bench = Bench()
    assert bench.output_tokens([(0, 1), (1, None), (1, 0)], [False, False, True]) == 3000 + 1800 + 8192


def test_the_mean_share_of_lost_verdicts_is_the_one_asked_for_and_long_pairs_lose_more():
    bench, rng = Bench(missing=0.1), random.Random(1)
    pairs = [(100, 100), (600, 600)]
    typical = (sum((a + b) ** 2 for a, b in pairs) / len(pairs)) ** 0.5
    short, long = ([bench.losses([(0, 1)], lengths, typical, rng)[0] for _ in range(20_000)] for lengths in pairs)
    assert (sum(short) + sum(long)) / 40_000 == pytest.approx(0.1, abs=0.01)
    assert sum(long) > 20 * sum(short)
