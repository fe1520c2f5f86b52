"""A replica killed with -9 inside a transfer, then the last one frozen inside one: the run waits, and goes on."""

from __future__ import annotations

import random
from pathlib import Path

from tests.chaos.fleet_assault import Assault, Strike
from tests.chaos.fleet_ground import standing_ground, wait_until_they_answer
from tests.chaos.fleet_witness import Report


def test_a_run_goes_on_over_a_death_in_a_transfer_and_over_a_fleet_that_froze(folder: Path, reward_url: str) -> None:
    ground_folder = folder / "fleet-kills"
    ground_folder.mkdir()
    report = Report()
    with standing_ground(ground_folder, num_replicas=2, reward_url=reward_url) as ground:
        first, second = ground.standing
        strikes = iter(
            [
                Strike("kill", "api", in_transfer=True, victim=first),
                Strike("freeze a while", "engine", in_transfer=True, victim=second, least=1),
            ]
        )
        wait_until_they_answer(ground, [first, second])
        assault = Assault(ground, report, random.Random(0), own_replicas=0, revives=False)
        assault.run("run", lambda: next(strikes, None), steps=6)
    assert (report.kills, report.steps, report.in_transfer) == (2, 6, 2)
    assert report.recovery_beyond_deadline_max_s <= 5.0
    assert report.checksums_compared >= 2
    assert (report.groups, report.lost_groups, report.repeated_groups) == (24, 0, 0)
