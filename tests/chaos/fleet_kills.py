"""Replicas are killed and frozen while a run trains over them, and the run goes on, whole and right.

    python -m tests.chaos.fleet_kills --kills 30 --seed 1

A reward service and two replicas stand throughout; runs of the real trainer join them and start a third replica of
their own. At drawn moments a replica's API process or its engine is killed with -9, frozen, or frozen for a while;
every second time inside a transfer of weights: when the replica's own gate says that it is loading. Once all replicas
die at once. Between the strikes vLLM's checksums of what each replica serves are compared with the policy that the
learner wrote to disk at the same step, bit for bit. Ends with one JSON line; exit code 1 on any failure.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.chaos.fleet_assault import PARTS, WAYS, Assault, Strike
from tests.chaos.fleet_ground import TRANSFER_TIMEOUT_S, standing_ground, wait_until_they_answer
from tests.chaos.fleet_witness import Report
from tests.chaos.learner_kills import Broken, say, stop

VOLLEY_AT = 9  # the kill from which on all replicas die at once
ALLOWED_BEYOND_DEADLINE_S = 5.0


def drawn_strikes(report: Report, draw: random.Random, kills: int) -> Callable[[], Strike | None]:
    """Draws strikes until there were enough, every second one inside a transfer."""
    turn, has_volley = 0, kills <= VOLLEY_AT

    def next_strike() -> Strike | None:
        nonlocal turn, has_volley
        if report.kills >= kills:
            return None
        if not has_volley and report.kills >= VOLLEY_AT:
            has_volley = True
            return Strike("volley", "api", in_transfer=False)
        turn += 1
        in_transfer = turn % 2 == 1
        return Strike(
            draw.choice(WAYS),
            draw.choice(PARTS),
            in_transfer,
            least=2 if in_transfer or draw.random() < 0.5 else 1,
            wait_s=draw.uniform(0.0, 5.0),
            thaw_s=draw.uniform(0.5, 2 * TRANSFER_TIMEOUT_S),
        )

    return next_strike


def main(argv: Sequence[str] | None = None) -> int:
    """Start the services, strike, print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, stop)
    report, started, draw = Report(seed=arguments.seed), time.monotonic(), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="fleet-kills-") as folder:
        try:
            with standing_ground(Path(folder), num_replicas=2) as ground:
                wait_until_they_answer(ground, list(ground.standing))
                strikes = drawn_strikes(report, draw, arguments.kills)
                assault = Assault(ground, report, draw)
                while report.kills < arguments.kills:
                    assault.run(f"run-{report.runs}", strikes)
            report.ok = report.recovery_beyond_deadline_max_s <= ALLOWED_BEYOND_DEADLINE_S
            report.ok &= report.in_transfer >= arguments.kills // 3
        except (Broken, AssertionError) as error:
            say(f"error: {error}")
    report.seconds = round(time.monotonic() - started, 1)
    print(json.dumps(asdict(report)))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
