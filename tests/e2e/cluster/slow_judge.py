"""Run on the reward host: its GenRM is as slow as a large one is, until SIGTERM.

    python -m tests.e2e.cluster.slow_judge

In a real run the judge is the slow part. Here it gets a small part of the time, so that the run outlasts what happens
to it, and servers that start have the machine's cores.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

WORKS_S, RESTS_S = 0.1, 1.9


def engine() -> int:
    """The process that computes for this host's GenRM server."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if (process / "cmdline").read_text().startswith("VLLM::EngineCore"):
                return int(process.name)
    raise SystemExit("no GenRM server runs here")


def main() -> None:
    """Stop it and let it go on, again and again."""
    pid, over = engine(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    while not over.is_set():
        os.kill(pid, signal.SIGSTOP)
        over.wait(RESTS_S)
        os.kill(pid, signal.SIGCONT)
        over.wait(WORKS_S)


if __name__ == "__main__":
    main()
