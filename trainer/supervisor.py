"""The run's undertaker: whatever way the driver dies, nothing that it started outlives it.

Every process of a run carries the run's id in its environment. The supervisor holds the reading end of a pipe whose
writing end only the driver has; when the driver is gone, the kernel closes it, and the supervisor ends every process
with that id: Ray's daemons and agents, replicas, the judge, learner ranks. A server that the run only joined carries
no such id and stays.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

RUN_ENV = "RLHF_RUN_ID"
GRACE_S = 4.0
PATIENCE_S = 20.0


def processes_of(run_id: str) -> Iterator[int]:
    """Ids of the living processes that carry the run's id."""
    mark = f"{RUN_ENV}={run_id}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            is_zombie = b") Z " in (entry / "stat").read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        if mark in environment and not is_zombie:
            yield int(entry.name)


def end_processes(run_id: str) -> int:
    """SIGTERM, and after a grace period SIGKILL, until none is left; returns how many were found alive."""
    started, seen = time.monotonic(), set[int]()
    while time.monotonic() - started < PATIENCE_S:
        living = list(processes_of(run_id))
        if not living:
            break
        sign = signal.SIGKILL if time.monotonic() - started > GRACE_S else signal.SIGTERM
        for pid in living:
            if sign == signal.SIGKILL or pid not in seen:
                _signal(pid, sign)
        seen.update(living)
        time.sleep(0.2)
    return len(seen)


def _signal(pid: int, sign: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, sign)


class Supervised:
    """Context manager around everything a run starts.

    Inside it, every child process is marked; on the way out, or when this process dies, what is left of them is ended.
    """

    def __init__(self) -> None:
        self.run_id = uuid.uuid4().hex
        self._supervisor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", "trainer.supervisor", self.run_id],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal must not reach it
        )
        os.environ[RUN_ENV] = self.run_id
        # Ray and vLLM rename their processes in memory that borders on the environment; this keeps it readable.
        os.environ["SPT_NOENV"] = "1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._supervisor is not None and self._supervisor.stdin is not None
        os.environ.pop(RUN_ENV, None)
        self._supervisor.stdin.close()
        self._supervisor.wait(PATIENCE_S + 5.0)


def main() -> None:
    """Wait for the driver's end, then end the rest."""
    # `ray job stop` signals every child of the driver at once, and this one still has its work before it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_processes(sys.argv[1])


if __name__ == "__main__":
    main()
