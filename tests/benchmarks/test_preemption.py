"""The preemption trace and its arithmetic: what is there, what is away, what could have been written."""

import itertools
import math

import pytest

from benchmarks.preemption import make_trace, percentile, present_seconds

WAVES = {"share": 1 / 3, "every_s": 30.0, "away_s": 10.0}


def test_the_same_seed_gives_the_same_trace_and_another_seed_another():
    assert make_trace(12, 600.0, seed=1, **WAVES) == make_trace(12, 600.0, seed=1, **WAVES)
    assert make_trace(12, 600.0, seed=1, **WAVES) != make_trace(12, 600.0, seed=2, **WAVES)


@pytest.mark.parametrize("seed", range(5))
def test_a_wave_takes_its_share_at_once_and_nobody_is_taken_twice(seed):
    trace = make_trace(12, 600.0, seed=seed, **WAVES)
    starts = sorted({absence.start for absence in trace})
    assert len(starts) > 5 and all(sum(absence.start == start for absence in trace) == 4 for start in starts)
    for index in range(12):
        own = sorted((absence.start, absence.end) for absence in trace if absence.index == index)
        assert all(5.0 <= end - start <= 15.0 for start, end in own)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(own))


def test_a_share_of_none_takes_nobody():
    assert make_trace(12, 600.0, seed=1, share=0.0, every_s=30.0, away_s=10.0) == []


def test_what_is_there_is_all_but_the_overlaps_of_the_absences_with_the_window():
    away = [(0.0, 12.0), (15.0, 16.0), (18.0, math.inf), (30.0, 40.0)]
    assert present_seconds(3, away, 10.0, 20.0) == 3 * 10 - 2 - 1 - 2


def test_a_percentile_is_one_of_the_values():
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 3.0
    assert percentile([1.0], 0.95) == 1.0 and math.isnan(percentile([], 0.5))
