"""`<output_dir>/trace.json`: who waited for whom, and when, in Chrome's trace event format; Perfetto opens it.

    {"displayTimeUnit":"ms","otherData":{"started":"2026-03-01T09:00:00+00:00","started_s":1772355600.0},"traceEvents":[
    {"ph":"M","name":"process_name","pid":1,"tid":0,"args":{"name":"driver"}},
    {"ph":"X","name":"writes","cat":"replica","ts":1500000,"dur":250000,"pid":2,"tid":0,
     "args":{"who":"group 12","reason":"writes"}}
    ]}

A process (pid) is a row: the driver, each learner rank, each replica, the reward service, each GenRM server, fleet,
disk. Events of a row that overlap lie in lanes (tid), each in the lowest that is free. On the driver's row lane 0 has
its own stages, and the others the groups that it waits for. `ts` and `dur` are microseconds; `ts` counts from the wall
time `started_s` (seconds since 1970) at which the run began first.

The file is valid JSON after every flush. A fresh run begins it anew; a resumed one goes on in it, so the gap between
two lives is to be seen. Where it grows beyond half of what it may have it becomes `trace.previous.json`, in the place
of an older one, and a new file goes on with the same rows and the same zero.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import deque
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

from wire.waits import WAITS, Wait, Waits

TRACE_FILE = "trace.json"
PREVIOUS_FILE = "trace.previous.json"
DRIVER = "driver"
STAGES_LANE = 0  # of the driver's row
KINDS = (DRIVER, "learner", "replica", "judge", "genrm", "fleet", "disk", "ray")  # rows from the top
RECENT = 20_000  # events kept in memory for the pictures: about 5 MB

_TAIL = b"\n]}\n"
_BETWEEN = b",\n"
_METADATA = b'{"ph":"M"'


class Event(NamedTuple):
    """One bar of the trace. `start` and `end` are seconds since the run began first."""

    row: str
    lane: int
    name: str
    who: str
    reason: str
    start: float
    end: float


def kind_of(peer: str) -> str:
    """What a peer is by its name: `replica` of "replica http://10.0.0.7:8000"."""
    return peer.partition(" ")[0]


class Trace:
    """Writes down every wait that ends while it is open, as a context manager. Needs a running event loop.

    A trace that cannot be written says so once and ends; the run goes on.

    Args:
        folder: the run's output_dir; made where it is missing.
        limit_bytes: what the files may take together, about; 0: none is written, and only `recent` is kept.
        goes_on: whether the run is resumed.
        waits: whom to listen to.
    """

    def __init__(self, folder: Path, *, limit_bytes: int, goes_on: bool = False, waits: Waits = WAITS) -> None:
        self._path, self._limit_bytes, self._waits = folder / TRACE_FILE, limit_bytes, waits
        self._listening = ExitStack()
        self._lanes: dict[str, list[float]] = {}  # by row: when the last event of each lane ended
        self._pids: dict[str, int] = {}
        self._named: set[tuple[int, int]] = set()  # lanes whose name is in the file
        self._pending: list[bytes] = []
        self._encode = msgspec.json.Encoder().encode
        self.recent: deque[Event] = deque(maxlen=RECENT)
        self._file: int | None = None
        self._end = 0  # offset of the tail in the file
        now_s = time.time()
        self._started_s = now_s
        if limit_bytes:
            folder.mkdir(parents=True, exist_ok=True)
            if not (goes_on and self._reopen()):
                self._begin()
        self._zero = asyncio.get_running_loop().time() - max(0.0, now_s - self._started_s)

    def __enter__(self) -> Self:
        self._listening.enter_context(self._waits.heard_by(self.hear))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()
        now = asyncio.get_running_loop().time()
        for wait in self._waits.current:  # what ended the run is often among them
            self.hear(wait, now)
        self.flush()
        self._stop()

    def since_start(self, when: float) -> float:
        """Seconds from the run's first beginning to a time of the loop's clock."""
        return max(0.0, when - self._zero)

    def hear(self, wait: Wait, end: float) -> None:
        """Add a wait that ended at `end`, by the loop's clock."""
        row, name = _row_and_name(wait)
        self._add(row, None, name, wait.who, wait.reason, wait.since, end)

    def stage(self, name: str, start: float, end: float) -> None:
        """Add a stage of the driver itself, which nobody waits for; times by the loop's clock."""
        self._add(DRIVER, STAGES_LANE, name, DRIVER, name, start, end)

    def window(self, start: float, now: float) -> list[Event]:
        """What is kept in memory of the time since `start`, and what is still waited for `now`, as if it ended; `start`
        in seconds since the run's beginning, `now` by the loop's clock."""
        events = [event for event in self.recent if event.end >= start]
        lanes = {row: list(ends) for row, ends in self._lanes.items()}
        for wait in self._waits.current:
            row, name = _row_and_name(wait)
            since, end = self.since_start(wait.since), self.since_start(now)
            lane = _take_lane(lanes.setdefault(row, _no_lanes(row)), since, end)
            events.append(Event(row, lane, name, wait.who, wait.reason, since, end))
        return events

    @property
    def complete_from(self) -> float:
        """Since when `recent` has every event, seconds since the run's beginning."""
        return self.recent[0].end if len(self.recent) == RECENT else 0.0

    def _add(self, row: str, lane: int | None, name: str, who: str, reason: str, start: float, end: float) -> None:
        start, end = self.since_start(start), self.since_start(end)
        if lane is None:
            lane = _take_lane(self._lanes.setdefault(row, _no_lanes(row)), start, end)
        self.recent.append(Event(row, lane, name, who, reason, start, end))
        if self._file is None:
            return
        pid, start_us = self._pid(row), round(start * 1e6)
        if (pid, lane) not in self._named:
            self._named.add((pid, lane))
            self._pending.append(self._metadata("thread_name", pid, lane, name=_lane_name(row, lane)))
        self._pending.append(
            self._encode(
                {
                    "ph": "X",
                    "name": name,
                    "cat": kind_of(row),
                    "ts": start_us,
                    "dur": round(end * 1e6) - start_us,  # of the rounded end: neighbours never overlap
                    "pid": pid,
                    "tid": lane,
                    "args": {"who": who, "reason": reason},
                }
            )
        )

    def _pid(self, row: str) -> int:
        if row not in self._pids:
            self._pids[row] = len(self._pids) + 1
            self._pending += self._row_metadata(row)
        return self._pids[row]

    def _row_metadata(self, row: str) -> list[bytes]:
        pid, kind = self._pids[row], kind_of(row)
        rank = KINDS.index(kind) if kind in KINDS else len(KINDS)
        return [
            self._metadata("process_name", pid, 0, name=row),
            self._metadata("process_sort_index", pid, 0, sort_index=1000 * rank + pid),
        ]

    def _metadata(self, what: str, pid: int, tid: int, **args: Any) -> bytes:
        return self._encode({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args})

    def flush(self) -> None:
        """Write what is new."""
        if self._file is None or not self._pending:
            return
        block = _BETWEEN + _BETWEEN.join(self._pending)
        self._pending = []
        try:
            if self._end + len(block) > self._limit_bytes // 2:
                self._rotate()
            # One call: a process that is killed leaves the file as it was before or as it is after.
            os.pwrite(self._file, block + _TAIL, self._end)
        except OSError as error:
            logging.getLogger(__name__).warning("no trace from now on: %s: %s", self._path, error)
            self._stop()
            return
        self._end += len(block)

    def _rotate(self) -> None:
        self._path.rename(self._path.with_name(PREVIOUS_FILE))
        self._stop()
        self._begin()

    def _stop(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def _begin(self) -> None:
        """A new file with the rows that there are; the driver's is always one, so that a comma may follow."""
        started = datetime.fromtimestamp(self._started_s, UTC).isoformat(timespec="milliseconds")
        head = {"displayTimeUnit": "ms", "otherData": {"started": started, "started_s": self._started_s}}
        self._pids.setdefault(DRIVER, 1)
        events = [line for row in self._pids for line in self._row_metadata(row)]
        pids = {pid: row for row, pid in self._pids.items()}
        events += [
            self._metadata("thread_name", pid, lane, name=_lane_name(pids[pid], lane)) for pid, lane in self._named
        ]
        text = self._encode(head)[:-1] + b',"traceEvents":[\n' + _BETWEEN.join(events)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.pwrite(self._file, text + _TAIL, 0)
        self._end = len(text)

    def _reopen(self) -> bool:
        """Go on in the file of the life before; returns whether there is one that is whole."""
        try:
            with self._path.open("rb") as file:
                head = msgspec.json.decode(file.readline().strip() + b"]}")
                last = b""
                for last in file:
                    if last.startswith(_METADATA):
                        self._remember(msgspec.json.decode(last.rstrip(_BETWEEN)))
                size = file.tell()
            if last != _TAIL.lstrip():
                raise ValueError("its writing was broken off")
            self._started_s = float(head["otherData"]["started_s"])
        except (OSError, KeyError, TypeError, ValueError):  # msgspec's errors are ValueErrors
            self._pids, self._named = {}, set()
            return False
        self._file = os.open(self._path, os.O_RDWR)
        self._end = size - len(_TAIL)
        return True

    def _remember(self, metadata: dict[str, Any]) -> None:
        if metadata["name"] == "process_name":
            self._pids[metadata["args"]["name"]] = metadata["pid"]
        elif metadata["name"] == "thread_name":
            self._named.add((metadata["pid"], metadata["tid"]))


def _row_and_name(wait: Wait) -> tuple[str, str]:
    """A group has no row: the driver is who waits for it."""
    if kind_of(wait.peer) in ("group", "held-out"):
        return DRIVER, f"{wait.peer} {wait.reason}"
    return wait.peer, wait.reason


def _no_lanes(row: str) -> list[float]:
    return [math.inf] if row == DRIVER else []  # the stages' own is never free


def _take_lane(ends: list[float], start: float, end: float) -> int:
    """The lowest lane that is free from `start` on; `ends` says when the last event of each ended. Events come in the
    order of their ends, so a lane is free if its last one was over by then."""
    for lane, busy_until in enumerate(ends):
        if busy_until <= start:
            ends[lane] = end
            return lane
    ends.append(end)
    return len(ends) - 1


def _lane_name(row: str, lane: int) -> str:
    return "stages" if (row, lane) == (DRIVER, STAGES_LANE) else f"lane {lane}"
