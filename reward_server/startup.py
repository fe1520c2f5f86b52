"""How long a GenRM server takes until it is ready: its files, then its loading."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from reward_server.fetch_state import FetchState, span
from wire.process import ServerProcess

LOADS = "loads"


@dataclass(frozen=True)
class Startup:
    """What is known of a server's last start. `doing` is empty once it answers; `fetch_s` is None before its files are
    here, `load_s` before it answers, both in seconds. `fetch` is how far the files are, None for those of a folder."""

    doing: str = LOADS
    fetch_s: float | None = None
    load_s: float | None = None
    fetch: FetchState | None = None

    @property
    def is_fetching(self) -> bool:
        """Whether its files are still on their way."""
        return self.fetch is not None and self.fetch.is_under_way

    @property
    def line(self) -> str:
        """For people, once it answers: `ready in 15 min 55 s: files 99.8 GB here, ..., loaded in 2 min 23 s`."""
        if self.load_s is None:
            return self.doing
        files = f"files {self.fetch.line}, " if self.fetch is not None else ""
        return f"ready in {span((self.fetch_s or 0.0) + self.load_s)}: {files}loaded in {span(self.load_s)}"


class GenrmProcess(ServerProcess):
    """The process of a GenRM server, which may fetch its files first.

    Args:
        state_file: where it writes how far they are; None where it fetches nothing. The others are `ServerProcess`'s.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        env: dict[str, str],
        log_path: Path,
        url: str,
        memory_advice: str = "",
        state_file: Path | None = None,
    ) -> None:
        super().__init__(name, command, env, log_path, url, memory_advice)
        self._state_file = state_file
        self._began = 0.0
        self._answered: float | None = None
        self._done: Startup | None = None

    def start(self) -> None:
        """As `ServerProcess.start`; what an earlier start left is forgotten."""
        if self._state_file is not None:
            self._state_file.unlink(missing_ok=True)
        self._began, self._answered, self._done = time.monotonic(), None, None
        super().start()

    def is_healthy(self, timeout_s: float = 2.0) -> bool:
        """As `ServerProcess.is_healthy`; the first time is noted."""
        healthy = super().is_healthy(timeout_s)
        if healthy and self._answered is None:
            self._answered = time.monotonic()
        return healthy

    def raise_fetch_failure(self) -> None:
        """Raises ConfigError or ServiceError where it ended for want of its files."""
        state = self._fetch_state()
        if state is not None:
            state.raise_failure(self.name)

    def startup(self) -> Startup:
        """How its start goes, or went."""
        if self._done is not None:
            return self._done
        state = self._fetch_state()
        if state is None and self._state_file is not None:
            state = FetchState()
        fetch_s = 0.0 if state is None else None if state.is_under_way else state.seconds
        if self._answered is None or fetch_s is None:
            doing = f"fetches: {state.line}" if state is not None and state.is_under_way else LOADS
            return Startup(doing, fetch_s, None, state)
        self._done = Startup("", fetch_s, max(0.0, self._answered - self._began - fetch_s), state)
        return self._done

    def _fetch_state(self) -> FetchState | None:
        return FetchState.read(self._state_file) if self._state_file is not None else None
