"""`python -m rollout_server.main --config FILE --replicas N`: start N replicas and keep them running.

A replica that ends is started again, with a pause that doubles with each early death; the others go on meanwhile.
SIGINT or SIGTERM ends them all.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType

from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from wire.errors import ServiceError
from wire.models import check_model
from wire.process import ServerProcess
from wire.settings import parse_settings, run_program
from wire.token import read_or_create_token

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
HEALTHY_AFTER_S = 120.0  # a server that lived this long did not die of its configuration
MAX_EARLY_DEATHS = 5


@dataclass
class Keeper:
    """Keeps one replica alive. Times are of the monotonic clock, in seconds."""

    process: ServerProcess
    started: float = 0.0
    restart_at: float = 0.0
    early_deaths: int = 0
    announced: bool = False

    def tend(self, now: float) -> None:
        """Start, announce or restart the replica, whichever is due.

        Raises:
            ServiceError: it died early `MAX_EARLY_DEATHS` times in a row.
        """
        if self.process.is_alive():
            self._announce()
        elif self.started:
            self._bury(now)
        elif now >= self.restart_at:
            self.process.start()
            self.started = now

    def _announce(self) -> None:
        if not self.announced and self.process.is_healthy(timeout_s=0.5):
            self.announced = True
            print(f"{self.process.name} {self.process.url}", flush=True)

    def _bury(self, now: float) -> None:
        obituary = self.process.obituary()
        self.early_deaths = self.early_deaths + 1 if now - self.started < HEALTHY_AFTER_S else 1
        self.process.stop()  # its engine processes may have outlived it
        if self.early_deaths >= MAX_EARLY_DEATHS:
            raise ServiceError(f"{obituary} It died {self.early_deaths} times in a row.")
        pause = min(FIRST_PAUSE_S * 2 ** (self.early_deaths - 1), LONGEST_PAUSE_S)
        print(f"{obituary} Starting it again in {pause:.0f} s.", file=sys.stderr, flush=True)
        self.started, self.announced, self.restart_at = 0.0, False, now + pause


def serve(settings: RolloutSettings, stop: threading.Event) -> None:
    """Run the replicas until `stop` is set; all are ended on the way out."""
    keepers = [Keeper(replica_process(settings, index, shares_host=True)) for index in range(settings.replicas)]
    try:
        while not stop.wait(0.25):
            for keeper in keepers:
                keeper.tend(time.monotonic())
    finally:
        for keeper in keepers:
            keeper.process.stop()


def main() -> int:
    """Parse, check, serve."""
    settings, _ = parse_settings(RolloutSettings, strict_file=False)
    check_model(settings.model_name_or_path, "model_name_or_path")
    read_or_create_token(settings.token_file)
    stop = threading.Event()

    def on_signal(_signum: int, _frame: FrameType | None) -> None:
        stop.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, on_signal)
    serve(settings, stop)
    return 0


if __name__ == "__main__":
    run_program(main)
