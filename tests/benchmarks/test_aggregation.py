"""What the aggregation benchmark claims."""

import json
import random
import sys

import pytest

from benchmarks import aggregation
from benchmarks.aggregation import kendall, measure, squared_error
from benchmarks.planted_judge import NoisyJudge


@pytest.mark.parametrize("pairing", ["ring_extra", "all_pairs", "both_orders"])
def test_with_more_pairs_than_the_ring_least_squares_recovers_a_planted_order_better_than_the_mean(pairing):
    row = measure(NoisyJudge(), 8, pairing, num_groups=1500, seed=1)
    assert row.tau_gain > 4 * row.tau_gain_error
    assert row.least_squares_mse < 0.95 * row.mean_mse


def test_rank_correlation_and_error_by_hand():
    assert kendall([1, 2, 3], [0.1, 0.2, 0.3]) == 1 and kendall([3, 2, 1], [0.1, 0.2, 0.3]) == -1
    assert kendall([1, 1, 2], [0.1, 0.2, 0.3]) == pytest.approx(2 / 3)
    assert kendall([1, None, 2], [0.1, 0.2, 0.3]) == pytest.approx(1 / 3)
    assert squared_error([3, 1], [2, 2]) == 4


def test_the_judge_likes_place_1_by_its_bias_and_stays_on_its_scales():
    rng, judge = random.Random(1), NoisyJudge(noise=0.4, mood=0.4, bias=0.5)
    verdicts = [judge.verdict(3, 3, rng) for _ in range(4000)]
    lead = [v.scores[0] - v.scores[1] for v in verdicts]
    assert sum(lead) / len(lead) == pytest.approx(0.5, abs=0.05)
    assert {v.ranking for v in verdicts} <= set(range(1, 7)) and {s for v in verdicts for s in v.scores} <= set(
        range(6)
    )


def test_the_program_ends_with_one_json_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aggregation", "--groups", "5"])
    aggregation.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["groups"] == 5 and len(figures["rows"]) == 8
