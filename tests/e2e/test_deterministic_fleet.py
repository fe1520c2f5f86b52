"""One of two replicas is killed, a learner in a save, the driver: the weights are those of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.any_ground import DRIVER, LEARNER, REPLICA, Layout, standing_ground
from tests.chaos.any_kills import Assault, Report, Strike, undisturbed

NUM_STEPS = 6


def test_a_deterministic_run_ends_in_the_weights_of_one_over_one_replica_whoever_was_killed(folder: Path) -> None:
    ground_folder = folder / "deterministic-fleet"
    ground_folder.mkdir()
    report = Report()
    strikes = iter([Strike(REPLICA, "step", steps=1), Strike(LEARNER, "save"), Strike(DRIVER, "step", 0.5, steps=1)])
    with standing_ground(ground_folder, num_replicas=2) as ground:
        assault = Assault(ground, report, undisturbed(ground, NUM_STEPS), lambda: next(strikes, None))
        assault.run("killed", Layout(deterministic=True, num_steps=NUM_STEPS, num_replicas=2))
    assert report.kills_by_kind == {REPLICA: 1, LEARNER: 1, DRIVER: 1}
    assert report.in_save >= 1 and report.lives == 3
    assert (report.steps, report.groups, report.discarded_completions) == (NUM_STEPS, 4 * NUM_STEPS, 0)
