"""Processor time of several programs while they run, by what their processes are.

On shared cores the clock of a program says what the others left it; what it used is its own.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Self

import psutil

Label = Callable[[psutil.Process, bool], str]  # (a process, whether it is the program's first) -> what it is
MACHINE = "machine"  # the name under which a sample has what all processes of the host used


class ProcessorTime:
    """Samples, in a thread, the user and system seconds of programs and of all that descends from them.

    Args:
        programs: process id -> how its processes are named.
        interval_s: time between two samples.
    """

    def __init__(self, programs: Mapping[int, Label], interval_s: float = 0.5) -> None:
        self._programs, self._interval_s = dict(programs), interval_s
        self._used: dict[tuple[int, float], float] = {}  # of each process, also when it is gone
        self._labels: dict[tuple[int, float], str] = {}
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, start: float, end: float) -> dict[str, float]:
        """Seconds that each kind of process used between two times of `time.time()`, interpolated."""
        return used_between(self._samples, start, end)

    def _run(self) -> None:
        while True:
            self._samples.append((time.time(), self._sample()))
            if self._stop.wait(self._interval_s):
                return

    def _sample(self) -> dict[str, float]:
        for pid, label in self._programs.items():
            with suppress(psutil.Error):
                program = psutil.Process(pid)
                for process in (program, *program.children(recursive=True)):
                    self._look_at(process, label, process.pid == pid)
        totals = Counter[str]()
        for key, seconds in self._used.items():
            totals[self._labels[key]] += seconds
        whole = psutil.cpu_times()
        return {**totals, MACHINE: sum(whole) - whole.idle - getattr(whole, "iowait", 0.0)}

    def _look_at(self, process: psutil.Process, label: Label, is_first: bool) -> None:
        with suppress(psutil.Error):  # it ended meanwhile: what it had used when it was last seen counts
            key = (process.pid, process.create_time())
            times = process.cpu_times()
            self._used[key] = times.user + times.system
            self._labels[key] = label(process, is_first)  # asked anew: programs rename themselves


def used_between(samples: list[tuple[float, dict[str, float]]], start: float, end: float) -> dict[str, float]:
    """Increase of each total of `samples` (time, totals so far) from `start` to `end`, interpolated in time."""
    before, after = _at(samples, start), _at(samples, end)
    return {name: after[name] - before.get(name, 0.0) for name in after}


def _at(samples: list[tuple[float, dict[str, float]]], moment: float) -> dict[str, float]:
    index = bisect_left([when for when, _ in samples], moment)
    if index == 0 or index == len(samples):
        return samples[min(index, len(samples) - 1)][1]
    (earlier, old), (later, new) = samples[index - 1 : index + 1]
    share = (moment - earlier) / (later - earlier)
    return {name: old.get(name, 0.0) + share * (value - old.get(name, 0.0)) for name, value in new.items()}
