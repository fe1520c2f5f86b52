"""`python -m rollout_server.main --config FILE --replicas N`: start N replicas and keep them running.

A replica that ends is started again, with a pause that doubles with each early death; the others go on meanwhile.
SIGINT or SIGTERM ends them all.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from wire.address import settled
from wire.keeper import Keeper
from wire.models import check_model
from wire.settings import parse_settings, run_program
from wire.token import read_or_create_token


def serve(settings: RolloutSettings, stop: threading.Event) -> None:
    """Run the replicas until `stop` is set; all are ended on the way out."""
    keepers = [Keeper(replica_process(settings, index, shares_host=True)) for index in range(settings.replicas)]
    try:
        while not stop.wait(0.25):
            for keeper in keepers:
                if keeper.tend(time.monotonic()):
                    print(f"{keeper.process.name} {keeper.process.url}", flush=True)
    finally:
        for keeper in keepers:
            keeper.process.stop()


def main() -> int:
    """Parse, check, serve."""
    settings, _ = parse_settings(RolloutSettings, strict_file=False)
    check_model(settings.model_name_or_path, "model_name_or_path")
    read_or_create_token(settings.token_file)
    stop = threading.Event()
    with settled(settings) as here:  # before the signals: Ray has handlers of its own
        _stop_on_signals(stop)
        serve(here, stop)
    return 0


def _stop_on_signals(stop: threading.Event) -> None:
    def on_signal(_signum: int, _frame: FrameType | None) -> None:
        stop.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, on_signal)


if __name__ == "__main__":
    run_program(main)
