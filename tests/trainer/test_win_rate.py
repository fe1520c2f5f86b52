"""The maths of a contest, by brute force and by planted truths."""

from __future__ import annotations

import math
from random import Random
from statistics import fmean, pstdev

import pytest

from trainer.win_rate import (
    LENGTH_RIDGE,
    length_controlled_win_rate,
    paired_interval,
    score_interval,
    wilson_interval,
    win_rate,
)


def test_a_draw_counts_half() -> None:
    assert win_rate([1.0, 0.0, 0.5, 0.5, 1.0]) == 0.6


@pytest.mark.parametrize(("rate", "num", "low", "high"), [
    (0.5, 100, 0.4038, 0.5962),  # Wilson's own form, worked out by hand
    (0.9, 10, 0.5958, 0.9821),
    (1.0, 20, 0.8389, 1.0),
    (0.0, 20, 0.0, 0.1611),
])  # fmt: skip
def test_the_interval_is_wilsons_and_has_a_width_where_all_won(rate: float, num: int, low: float, high: float) -> None:
    assert wilson_interval(rate, num) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("truth", [0.1, 0.5, 0.8])
def test_the_interval_holds_the_truth_in_about_95_of_100_cases(truth: float) -> None:
    rng, hits = Random(3), 0
    for _ in range(2000):
        rate = win_rate([float(rng.random() < truth) for _ in range(128)])
        low, high = wilson_interval(rate, 128)
        hits += low <= truth <= high
    assert 0.93 <= hits / 2000 <= 0.975


def test_the_interval_of_a_difference_is_agrestis_and_mins() -> None:
    """Of 100 pairs 30 to one side, 10 to the other: b' = 30.5, c' = 10.5 of 102, worked out by hand."""
    differences = [1.0] * 30 + [-1.0] * 10 + [0.0] * 60
    assert paired_interval(differences) == pytest.approx((0.0791, 0.3131), abs=1e-4)


@pytest.mark.parametrize("differences", [[1.0], [0.5] * 4, [0.0] * 3])
def test_a_few_pairs_that_agree_are_no_certainty(differences: list[float]) -> None:
    low, high = paired_interval(differences)
    assert -1 <= low < 0 < high <= 1


@pytest.mark.parametrize("truth", [0.0, 0.2])
@pytest.mark.parametrize("num", [16, 64])
def test_the_interval_of_a_difference_holds_the_truth_in_about_95_of_100_cases(truth: float, num: int) -> None:
    """Judges that agree on 70 % of the prompts, and differ by half or by all of a win on the others."""
    rng, hits = Random(4), 0
    for _ in range(2000):
        sizes = [rng.choice((0.5, 1.0)) * (rng.random() < 0.3) for _ in range(num)]
        signs = [1 if rng.random() < 0.5 + truth / (2 * 0.225) else -1 for _ in range(num)]
        low, high = paired_interval([size * sign for size, sign in zip(sizes, signs, strict=True)])
        hits += low <= truth <= high
    assert 0.93 <= hits / 2000 <= 0.99


@pytest.mark.parametrize("differences", [[1.0], [0.5, 0.5], [0.4] * 3])
def test_a_few_scores_that_agree_are_no_certainty(differences: list[float]) -> None:
    low, high = score_interval(differences)
    assert low < 0 < differences[0] < high


@pytest.mark.parametrize("num", [16, 64])
@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_the_interval_of_a_difference_of_scores_holds_the_truth_in_about_95_of_100_cases(
    num: int, spread: float
) -> None:
    rng, hits = Random(5), 0
    for _ in range(2000):
        low, high = score_interval([0.5 + rng.gauss(0, spread) for _ in range(num)])
        hits += low <= 0.5 <= high
    assert 0.93 <= hits / 2000 <= 0.98


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def planted(theta: float, phi: float, num: int, seed: int = 5) -> tuple[list[float], list[float]]:
    """Outcomes by the model itself, over answers that are longer on the whole."""
    rng = Random(seed)
    differences = [rng.gauss(30, 40) for _ in range(num)]
    spread = pstdev(differences)
    chances = [sigmoid(theta + phi * math.tanh(d / spread)) for d in differences]
    return [float(rng.random() < chance) for chance in chances], differences


def test_a_judge_that_likes_length_is_seen_through() -> None:
    outcomes, differences = planted(theta=0.0, phi=2.0, num=4000)
    assert win_rate(outcomes) > 0.65
    assert length_controlled_win_rate(outcomes, differences) == pytest.approx(0.5, abs=0.03)


def test_a_policy_that_is_better_at_any_length_stays_so() -> None:
    outcomes, differences = planted(theta=1.0, phi=0.0, num=4000)
    assert length_controlled_win_rate(outcomes, differences) == pytest.approx(sigmoid(1.0), abs=0.03)


def test_newton_finds_the_maximum_that_a_grid_finds() -> None:
    outcomes, differences = planted(theta=0.4, phi=-1.0, num=60)
    outcomes[:8] = [0.5] * 8
    x = [math.tanh(d / pstdev(differences)) for d in differences]

    def objective(theta: float, phi: float) -> float:
        chances = [sigmoid(theta + phi * value) for value in x]
        likelihood = sum(y * math.log(c) + (1 - y) * math.log(1 - c) for y, c in zip(outcomes, chances, strict=True))
        return likelihood - LENGTH_RIDGE * phi**2 / 2

    grid = [step / 50 for step in range(-150, 151)]
    theta, _ = max(((a, b) for a in grid for b in grid), key=lambda point: objective(*point))
    assert length_controlled_win_rate(outcomes, differences) == pytest.approx(sigmoid(theta), abs=0.006)


def test_exchanging_the_two_policies_gives_the_rest_to_one() -> None:
    outcomes, differences = planted(theta=0.7, phi=1.0, num=200)
    swapped = length_controlled_win_rate([1 - y for y in outcomes], [-d for d in differences])
    assert length_controlled_win_rate(outcomes, differences) == pytest.approx(1 - swapped)


def test_where_length_tells_all_wins_from_all_losses_the_rate_is_finite() -> None:
    differences = [-3.0, -2.0, -1.0, 1.0, 2.0, 3.0]
    outcomes = [float(d > 0) for d in differences]
    assert length_controlled_win_rate(outcomes, differences) == pytest.approx(0.5)


@pytest.mark.parametrize(("outcomes", "differences"), [
    ([1.0, 1.0, 1.0], [1.0, 5.0, -2.0]), ([0.0, 0.0], [1.0, 2.0]), ([1.0, 0.0, 0.5, 1.0], [4.0] * 4), ([1.0], [3.0]),
])  # fmt: skip
def test_where_length_cannot_be_told_from_quality_it_is_the_win_rate(
    outcomes: list[float], differences: list[float]
) -> None:
    assert length_controlled_win_rate(outcomes, differences) == fmean(outcomes)
