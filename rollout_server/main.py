"""`python -m rollout_server.main --config FILE --replicas N`: start N replicas and keep them running.

A replica that ends is started again, with a pause that doubles with each early death; the others go on meanwhile.
SIGINT or SIGTERM ends them all. With `ray_address` each is announced in the cluster when it answers, so that a run
there finds it (`rollout_server.announce`).
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack
from types import FrameType

from rollout_server.announce import announced
from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from wire.address import settled
from wire.keeper import Keeper
from wire.models import check_model
from wire.room import Needs
from wire.settings import parse_settings, run_program
from wire.token import read_or_create_token


def serve(settings: RolloutSettings, stop: threading.Event) -> None:
    """Run the replicas until `stop` is set; all are ended on the way out."""
    keepers = [Keeper(replica_process(settings, index, shares_host=True)) for index in range(settings.replicas)]
    known: set[str] = set()
    with ExitStack() as stack:
        for keeper in keepers:
            stack.callback(keeper.process.stop)
        while not stop.wait(0.25):
            for keeper in keepers:
                if keeper.tend(time.monotonic()):
                    url = keeper.process.url
                    print(f"{keeper.process.name} {url}", flush=True)
                    if settings.finds_replicas and url not in known:
                        known.add(url)
                        stack.enter_context(announced(settings, url))


def places_of(settings: RolloutSettings) -> Needs:
    """What the replicas have of their node in a cluster."""
    return Needs("the replicas", {"rollout": 1, "GPU": settings.gpus_per_replica}, settings.replicas)


def main() -> int:
    """Parse, check, serve."""
    settings, _ = parse_settings(RolloutSettings, strict_file=False)
    check_model(settings.model_name_or_path, "model_name_or_path")
    read_or_create_token(settings.token_file)
    stop = threading.Event()
    # Before the signals: Ray has handlers of its own.
    with settled(settings, announces=settings.finds_replicas, takes=places_of(settings)) as here:
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
