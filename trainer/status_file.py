"""`<output_dir>/status.json`: how a run stands, written by the driver each second, whole or not at all.

    {"run": {"output_dir": "runs/rloo", "host": "node-1", "pid": 4711, "boot": 8812345, "started": 1764035000.1,
             "written": 1764036022.9, "end": null},
     "progress": {"step": 12, "num_steps": 3125, "version": "0.12", "episodes": 192, "total_episodes": 50000,
                  "episodes_per_s": 1.31, "tokens_per_s": 2310.0, "lag_mean": 0.8, "lag_max": 1.0, "score": 3.4,
                  "left_s": 38000.0},
     "replicas": [{"url": "http://10.0.0.7:8000", "state": "ready", "version": "0.12", "in_flight": 4,
                   "tokens_per_s": 1155.0, "since_s": 122.0, "reason": ""}],
     "judge": {"url": "http://10.0.0.9:8100", "queue_depth": 3, "age_s": 2.1, "servers": [{"url": "...",
               "state": "ready", "in_flight": 6, "answers": 1200, "answers_per_s": 0.4, "losses": 0}]},
     "learner": [{"rank": 0, "does": "steps", "since_s": 3.2}],
     "queue": {"groups": {"alive": 8, "ready": 2}, "stages": {"replicas": 4, "the judge": 2}},
     "waits": {"chains": ["driver -> group 12 (is in the making, 40 s) -> genrm http://... (judges, 31 s)"],
               "by_reason": [{"peers": "replica", "reason": "writes", "num": 16, "num_peers": 4, "oldest_s": 12.0,
                              "oldest": "group 14 -> replica http://10.0.0.7:8000"}]},
     "warnings": ["kl>50 since step 9"],
     "said": [{"at": 1764036000.0, "line": "replica http://10.0.0.8:8000 is lost: ..."}]}

`started`, `written` and `at` are seconds of the wall clock, all other times ages at `written`. What is not known is
null. `boot` is when the process began, in the kernel's ticks: it tells a process from a later one of the same number.
`python -m trainer.status` shows it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from trainer.chains import Chains, described
from trainer.config import RunSettings
from trainer.pace import Rate
from wire.generation import PolicyVersion
from wire.waits import WAITS, Wait, Waits

if TYPE_CHECKING:
    from trainer.services import Services  # it imports Ray

STATUS_FILE = "status.json"
INTERVAL_S = 1.0
WINDOW_S = 30.0  # that tokens and answers a second are taken over
STEPS_WINDOW_S = 1800.0  # and episodes
NUM_SAID = 5  # lines that are kept
NUM_CHAINS = 3
LINE_LENGTH = 400  # of what is kept of a line, characters


class StatusFile:
    """Writes it while its block is open, and at the block's end how the run ended.

    The parts are named as they come up: `services` once they run, `warnings` with them, `groups`, `stages` and
    `metrics` once it trains.

    Args:
        settings: the run's.
        waits: of the program.
        interval_s: between two writings.
    """

    def __init__(self, settings: RunSettings, waits: Waits = WAITS, interval_s: float = INTERVAL_S) -> None:
        self._settings, self._waits, self._interval_s = settings, waits, interval_s
        self.path = Path(settings.output_dir) / STATUS_FILE
        self.services: Services | None = None
        self.groups: Callable[[], Mapping[str, float]] = dict  # of the pipeline, by what they are: alive, ready
        self.stages: Callable[[], Mapping[str, float]] = dict  # groups by where they are
        self.metrics: Callable[[], Mapping[str, float]] = dict  # of the last step, by TensorBoard's names
        self.warnings: Callable[[], Sequence[str]] = list  # of the tripwires, that are on
        self._said: deque[dict[str, Any]] = deque(maxlen=NUM_SAID)
        self._tokens: dict[str, Rate] = {}  # by replica
        self._answers: dict[str, Rate] = {}  # by GenRM server
        self._episodes = Rate(STEPS_WINDOW_S)
        self._idle_since: dict[str, float] = {}  # by who was waited for
        self._judge_info: tuple[float, Mapping[str, Any]] | None = None
        self._started = time.time()
        self._ticker: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    def hears(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """`say`, whose last lines the file then has."""

        def say_and_keep(line: str) -> None:
            self._said.append({"at": time.time(), "line": line.strip()[:LINE_LENGTH]})
            say(line)

        return say_and_keep

    async def __aenter__(self) -> Self:
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._ticker is not None
        self._ticker.cancel()
        await asyncio.gather(self._ticker, return_exceptions=True)
        if self._writing is not None:
            await asyncio.wait([self._writing])  # else the older state might come after the last
        cut = isinstance(error, asyncio.CancelledError)
        end = "done" if error is None else "stopped" if cut else f"{type(error).__name__}: {error}"[:LINE_LENGTH]
        self._write(self.snapshot() | {"run": self._run(end)})

    async def _tick(self) -> None:
        with self._waits.heard_by(self._hear):
            while True:
                state = self.snapshot()
                self._writing = asyncio.create_task(asyncio.to_thread(self._write, state))  # the disk may be slow
                await asyncio.shield(self._writing)
                await asyncio.sleep(self._interval_s)

    def _write(self, state: Mapping[str, Any]) -> None:
        aside = self.path.with_suffix(".partial")
        with suppress(OSError):  # a table is no reason to end a run, and its reader sees that it is old
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(state) + "\n")
            aside.rename(self.path)

    def _hear(self, wait: Wait, end: float) -> None:
        self._idle_since[wait.peer] = end

    # --- what is in it

    def snapshot(self) -> dict[str, Any]:
        """The file's content."""
        now = asyncio.get_running_loop().time()
        waits = self._waits.current
        replicas = self._replicas(now)
        return {
            "run": self._run(None),
            "progress": self._progress(replicas, now),
            "replicas": replicas,
            "judge": self._judge(now),
            "learner": [self._rank(rank, waits, now) for rank in range(self._settings.num_learner_ranks)],
            "queue": {"groups": dict(self.groups()), "stages": {k: n for k, n in self.stages().items() if n}},
            "waits": {"chains": _chains(waits, now), "by_reason": _by_reason(waits, now)},
            "warnings": list(self.warnings()),
            "said": list(self._said),
        }

    def _run(self, end: str | None) -> dict[str, Any]:
        return {
            "output_dir": self._settings.output_dir,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "boot": process_boot(os.getpid()),
            "started": self._started,
            "written": time.time(),
            "end": end,
        }

    def _progress(self, replicas: Sequence[Mapping[str, Any]], now: float) -> dict[str, Any]:
        settings, metrics = self._settings, self.metrics()
        version = self.services.fleet.version if self.services is not None else None
        step = version.step if version is not None else 0
        episodes = step * settings.completions_per_step
        if version is not None:
            self._episodes.note(now, episodes)
        rate = self._episodes.per_s
        left = settings.num_steps * settings.completions_per_step - episodes
        return {
            "step": step,
            "num_steps": settings.num_steps,
            "version": _label(version),
            "episodes": episodes,
            "total_episodes": settings.total_episodes,
            "episodes_per_s": rate,
            "tokens_per_s": sum(replica["tokens_per_s"] or 0.0 for replica in replicas),
            "lag_mean": metrics.get("sample/lag_mean"),
            "lag_max": metrics.get("sample/lag_max"),
            "score": _finite(metrics.get("objective/scores")),
            "left_s": left / rate if rate else None,
        }

    def _replicas(self, now: float) -> list[dict[str, Any]]:
        if self.services is None:
            return []
        rows = [*self.services.fleet.state()["replicas"], *self.services.replicas.state()]
        names = ("url", "state", "version", "in_flight", "since_s", "reason")
        return [
            {name: row.get(name) for name in names}
            | {"tokens_per_s": _rate(self._tokens, row["url"], row.get("tokens"), now)}
            for row in rows
        ]

    def _judge(self, now: float) -> dict[str, Any]:
        if self.services is None:
            return {"url": None, "queue_depth": None, "age_s": None, "servers": []}
        info = self.services.judge_info
        if self._judge_info is None or self._judge_info[1] is not info:  # each answer of the service is a new one
            self._judge_info = now, info
            for server in info.get("servers", ()):
                _rate(self._answers, server["url"], server["answers"], now)
        rates = self._answers
        return {
            "url": self.services.judge.url,
            "queue_depth": info.get("queue_depth"),
            "age_s": now - self._judge_info[0],
            "servers": [
                {name: server.get(name) for name in ("url", "state", "in_flight", "answers", "losses", "doing")}
                | {"answers_per_s": rates[server["url"]].per_s if server["url"] in rates else None}
                for server in info.get("servers", ())
            ],
        }

    def _rank(self, rank: int, waits: Sequence[Wait], now: float) -> dict[str, Any]:
        name = f"learner {rank}"
        found = [wait for wait in waits if wait.peer == name]
        if found:
            does = " and ".join(dict.fromkeys(wait.reason for wait in found))
            return {"rank": rank, "does": does, "since_s": now - found[0].since}
        since = self._idle_since.get(name)
        return {"rank": rank, "does": None, "since_s": None if since is None else now - since}


def process_boot(pid: int) -> int | None:
    """When the process of this number began, in the kernel's ticks since its own start; None where there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])  # proc(5): field 22
    except (OSError, IndexError, ValueError):
        return None


def _rate(rates: dict[str, Rate], name: str, count: float | None, now: float) -> float | None:
    if count is None:
        return None
    rate = rates.setdefault(name, Rate(WINDOW_S))
    rate.note(now, count)
    return rate.per_s


def _label(version: PolicyVersion | None) -> str | None:
    return None if version is None else version.label


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return value if value is not None and abs(value) < float("inf") else None


def _chains(waits: Sequence[Wait], now: float) -> list[str]:
    """What the driver waits for, down to whoever works."""
    chains = Chains(waits)
    own = [wait for wait in waits if wait.who == "driver"]
    return [described(chains.through(wait), now) for wait in own[:NUM_CHAINS]]


def _by_reason(waits: Sequence[Wait], now: float) -> list[dict[str, Any]]:
    """All waits, by the kind of peer and the reason; the kind with the oldest wait comes first."""
    kinds: dict[tuple[str, str], list[Wait]] = {}
    for wait in waits:
        kinds.setdefault((wait.peer.partition(" ")[0], wait.reason), []).append(wait)
    return [
        {
            "peers": peers,
            "reason": reason,
            "num": len(group),
            "num_peers": len({wait.peer for wait in group}),
            "oldest_s": now - group[0].since,
            "oldest": f"{group[0].who} -> {group[0].peer}",
        }
        for (peers, reason), group in kinds.items()
    ]
