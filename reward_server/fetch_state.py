"""How far the judge's files are: what the process that fetches them writes down, and others read.

A small JSON file beside the server's log, on the server's own node:

    {"phase": "fetches", "done_bytes": 12300000000, "total_bytes": 99800000000, "bytes_per_s": 410000000.0,
     "seconds": 31.5, "fetched_bytes": 12300000000, "message": "", "is_mistake": false}
"""

from __future__ import annotations

import json
import math
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from wire.errors import ConfigError, ServiceError

# looks: asks the hub which files there are; waits: another process of this host fetches them.
Phase = Literal["looks", "waits", "fetches", "here", "failed"]
UNDER_WAY = ("looks", "waits", "fetches")
RATE_WINDOW_S = 30.0


@dataclass(frozen=True)
class FetchState:
    """What a look finds. `done_bytes` of `total_bytes` are on the disk; `fetched_bytes` of them came since the start,
    `seconds` ago. `message` says why it failed; `is_mistake` whether a person has to change something."""

    phase: Phase = "looks"
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_s: float = 0.0
    seconds: float = 0.0
    fetched_bytes: int = 0
    message: str = ""
    is_mistake: bool = False

    @property
    def is_under_way(self) -> bool:
        """Whether files are still on their way."""
        return self.phase in UNDER_WAY

    @property
    def line(self) -> str:
        """For people: `12.3 of 99.8 GB, 410 MB/s, 3 min 33 s left`."""
        if self.phase == "looks":
            return "asks the hub for its files"
        if self.phase == "here":
            return f"{size(self.total_bytes)} here, {size(self.fetched_bytes)} fetched in {span(self.seconds)}"
        if self.phase == "failed":
            return self.message
        parts = [f"{size(self.done_bytes)} of {size(self.total_bytes)}"]
        if self.bytes_per_s > 0:
            left_s = (self.total_bytes - self.done_bytes) / self.bytes_per_s
            parts += [f"{size(self.bytes_per_s)}/s", f"{span(left_s)} left"]
        return ", ".join(parts) + (" (another process fetches)" if self.phase == "waits" else "")

    def raise_failure(self, name: str) -> None:
        """Raises ConfigError or ServiceError where the fetch failed; `name` is the server's."""
        if self.phase == "failed":
            raise (ConfigError if self.is_mistake else ServiceError)(f"{name}: {self.message}")

    def write(self, path: Path) -> None:
        """Put it in the file; a reader sees the old state or the new one."""
        aside = path.with_suffix(".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(asdict(self)) + "\n")
        aside.rename(path)

    @classmethod
    def read(cls, path: Path) -> FetchState | None:
        """What is in the file; None where nothing was fetched there."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads(path.read_text()))
        return None


class ByteRate:
    """Bytes a second over the last RATE_WINDOW_S."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now_s: float, done_bytes: int) -> float:
        """The rate, with one sample more."""
        self._samples.append((now_s, done_bytes))
        while len(self._samples) > 2 and now_s - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()
        first_s, first_bytes = self._samples[0]
        return max(0.0, (done_bytes - first_bytes) / (now_s - first_s)) if now_s > first_s else 0.0


def size(num_bytes: float) -> str:
    """`99.8 GB`, `410 MB`, `12 kB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.{1 if num_bytes < 100 * unit else 0}f} {name}"
    return f"{num_bytes:.0f} B"


def span(seconds: float) -> str:
    """`48 s`, `3 min 33 s`, `2 h 05 min`."""
    whole = math.ceil(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
