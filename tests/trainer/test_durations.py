"""The cut log-normal's formulas against drawn values."""

from __future__ import annotations

from statistics import fmean

import pytest

from trainer.durations import Duration

CASES = [
    Duration(20.0, 0.9, 200.0),
    Duration(20.0, 0.5, 30.0, shift=3.0),
    Duration.of_mean(600.0, 0.6, 1024.0).scaled(0.025, 0.3),
    Duration(5.0, 0.0, 50.0, shift=1.0),
]


@pytest.mark.parametrize("duration", CASES)
def test_mean_second_moment_and_cdf_are_those_of_what_is_drawn(duration: Duration) -> None:
    drawn = [duration.draw(seed) for seed in range(20_000)]
    assert fmean(drawn) == pytest.approx(duration.mean, rel=0.03)
    assert fmean(value**2 for value in drawn) == pytest.approx(duration.second_moment, rel=0.08)
    assert max(drawn) <= duration.top and min(drawn) > duration.shift
    for value in (duration.mean, duration.median + duration.shift, 0.9 * duration.top):
        assert sum(x <= value for x in drawn) / len(drawn) == pytest.approx(duration.cdf(value), abs=0.02)
    assert duration.cdf(duration.top) == 1.0 and duration.cdf(duration.shift) == 0.0


def test_a_seed_has_one_value() -> None:
    assert CASES[0].draw(7) == CASES[0].draw(7) != CASES[0].draw(8)


def test_the_mean_that_is_asked_for_is_the_mean_before_the_cut() -> None:
    assert Duration.of_mean(600.0, 0.6, 1e9).mean == pytest.approx(600.0)
