"""A measured process and the one that measures it: it takes a step when told to, and answers with a JSON line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


class Conductor:
    """The child's end: requests on standard input, answers on a pipe of their own, since libraries print."""

    def __init__(self, answers: int) -> None:
        self._out = os.fdopen(answers, "w", buffering=1)

    def wait(self) -> None:
        """Until the next step is asked for."""
        if not sys.stdin.readline():
            raise SystemExit("the measuring process is gone")

    def answer(self, **values: Any) -> None:
        """One step's numbers."""
        self._out.write(json.dumps(values) + "\n")


class ChildEnded(SystemExit):
    """A measured process ended before it answered; the message holds its last words."""


def gpu() -> Any:
    """`torch.cuda` where a GPU is in use, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def peaks() -> Answer:
    """`peak_bytes`, and `peak_gpu_bytes` (reserved by PyTorch) where a GPU is in use."""
    cuda = gpu()
    return {"peak_bytes": peak_memory()} | ({"peak_gpu_bytes": cuda.max_memory_reserved()} if cuda else {})


def peak_memory() -> int:
    """Bytes: the largest resident set that this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Stopwatch:
    """Seconds since it was made: on the wall, and of this process on all cores, which other processes disturb less."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Answer:
        """`seconds` and `cpu_seconds`, once the GPU, if any, has done what it was asked."""
        if cuda := gpu():
            cuda.synchronize()
        return {"seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._cpu}


class Child:
    """The measuring end: a process of its own, fresh, whose peak memory is its own."""

    def __init__(self, module: str, job: dict[str, Any], log: Path) -> None:
        self._log = log
        read, write = os.pipe()
        with log.open("w") as printed:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, json.dumps(job | {"answers": write})],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=printed,
                pass_fds=(write,),
                text=True,
            )
        os.close(write)
        self._answers = os.fdopen(read)

    def step(self) -> Answer:
        """Tell it to take a step, and wait for the numbers."""
        assert self._process.stdin
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        line = self._answers.readline()
        if not line:
            raise ChildEnded(f"a measured process ended early:\n{self._log.read_text()[-3000:]}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it; a child whose input is closed ends by itself."""
        assert self._process.stdin
        self._process.stdin.close()
        self._answers.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(step: Callable[[], Answer], conductor: Conductor) -> None:
    """Answer every request with what `step` returns and the peak memory so far."""
    while True:
        conductor.wait()
        conductor.answer(**step(), **peaks())
