"""A learner killed with -9 twice, once while it writes a checkpoint, and its run the same to the bit."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.learner_kills import Report, assault, standing_ground


def test_a_run_whose_learner_was_killed_twice_ends_in_the_same_weights(folder: Path) -> None:
    ground_folder = folder / "learner-kills"
    ground_folder.mkdir()
    report = Report(seed=18)
    with standing_ground(ground_folder, num_replicas=1) as ground:
        assault(ground, report, kills=2, after_a_checkpoint=True)
    assert report.equal
    assert report.kills == 2 and report.in_save >= 1  # the second may fall into a save by chance
    assert report.resumes == 2 and report.fresh_starts == 0
