"""The toy policy: its exact gradient, and what groups tell of it."""

import random

import numpy as np
import pytest

from benchmarks.signal_policy import FEATURES, Sampler, World, tokens_to_truth
from benchmarks.signal_schemes import RING_LEAST_SQUARES, RING_MEAN, Bench


@pytest.fixture(scope="module")
def world():
    return World.drawn(1)


def some_theta():
    return np.random.default_rng(1).normal(0, 0.05, FEATURES)


def test_the_exact_gradient_is_the_slope_of_the_mean_truth(world):
    theta_D, direction_D = some_theta(), np.random.default_rng(2).normal(0, 1, FEATURES)
    step = 1e-3
    there, back = (world.mean_truth(world.probabilities(theta_D + sign * step * direction_D)) for sign in (1, -1))
    slope = float(world.gradient(world.probabilities(theta_D)) @ direction_D)
    assert (there - back) / (2 * step) == pytest.approx(slope, rel=1e-3)  # features are in fp32


@pytest.mark.parametrize("num", [2, 4])
def test_leave_one_out_over_the_qualities_is_unbiased_for_the_exact_gradient(world, num):
    sampler = Sampler(world, Bench(), RING_MEAN, num, "unbiased")
    exact_D = world.gradient(sampler.policy(some_theta()))
    along_G = np.array([sampler.group().true_ascent_D for _ in range(3000)]) @ exact_D / (exact_D @ exact_D) / num
    assert along_G.mean() == pytest.approx(1, abs=4 * along_G.std() / 3000**0.5)
    assert along_G.std() / 3000**0.5 < 0.05  # the line above can tell


def test_two_samplers_of_one_seed_draw_and_judge_the_same_group(world):
    samplers = [Sampler(world, Bench(), way, 4, "same") for way in (RING_MEAN, RING_LEAST_SQUARES)]
    for sampler in samplers:
        sampler.policy(some_theta())
    for _ in range(20):
        one, other = (sampler.group() for sampler in samplers)
        assert one.truths == other.truths and one.tokens == other.tokens


def test_lengths_go_with_the_quality_and_their_pairs_have_the_typical_square(world):
    assert np.corrcoef(np.log(world.length_XM.ravel()), world.quality_XM.ravel())[0, 1] == pytest.approx(0.4, abs=0.05)
    rng, lengths = random.Random(1), world.length_XM.ravel().tolist()
    squares = [(rng.choice(lengths) + rng.choice(lengths)) ** 2 for _ in range(50_000)]
    assert sum(squares) / len(squares) == pytest.approx(world.pair_length**2, rel=0.03)


def test_training_raises_the_truth_and_a_higher_mark_costs_more_judge_tokens(world):
    spent = [
        tokens_to_truth(Sampler(world, Bench(), RING_LEAST_SQUARES, 4, "train"), world, mark, 0.03, 75e3, 1e8)
        for mark in (2.0, 3.2, 3.5)
    ]
    assert spent[0] == 0 and 0 < spent[1] < spent[2] < 1e8


def test_training_gives_up_at_the_limit(world):
    spent = tokens_to_truth(Sampler(world, Bench(), RING_MEAN, 4, "limit"), world, 9.0, 0.03, 75e3, 4e5)
    assert 4e5 <= spent < 6e5
