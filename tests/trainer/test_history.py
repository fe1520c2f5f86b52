"""Curves that stay small however long the run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trainer.history import MOST_POINTS, History


def test_short_runs_are_kept_as_they_are_and_gaps_are_left_out(tmp_path: Path) -> None:
    history = History(tmp_path / "curves.json", 0)
    history.add(1, {"score": 2.0, "kl": math.nan})
    history.add(2, {"score": 3.0, "kl": 0.5})
    assert history.curve("score") == [(1, 2.0), (2, 3.0)]
    assert history.curve("kl") == [(2, 0.5)] and history.curve("nothing") == []


@pytest.mark.parametrize("num_steps", [MOST_POINTS, MOST_POINTS + 1, 5 * MOST_POINTS + 3])
def test_long_runs_are_thinned_to_means_of_equally_many_steps(tmp_path: Path, num_steps: int) -> None:
    history = History(tmp_path / "curves.json", 0)
    for step in range(1, num_steps + 1):
        history.add(step, {"step": float(step)})
    curve = history.curve("step")
    assert MOST_POINTS / 2 <= len(curve) <= MOST_POINTS
    stride = int(curve[0][0])
    assert [step for step, _ in curve[:-1]] == [stride * i for i in range(1, len(curve))] and curve[-1][0] == num_steps
    assert all(mean == step - (stride - 1) / 2 for step, mean in curve[:-1])


def test_a_resumed_run_goes_on_from_its_step_and_a_fresh_one_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    history = History(path, 0)
    for step in range(1, 6):
        history.add(step, {"score": float(step)})
    history.save()
    resumed = History(path, 3)
    resumed.add(4, {"score": 40.0})
    assert resumed.curve("score") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert History(path, 0).curve("score") == []
    path.write_text("{")
    assert History(path, 3).curve("score") == []
