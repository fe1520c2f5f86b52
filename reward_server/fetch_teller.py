"""Tells a person how far a fetch is: one line that moves in a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from typing import TextIO

from reward_server.fetch_state import FetchState

LINE_EVERY_S = 30.0
BAR_WIDTH = 24


class Teller:
    """Writes to `stream` about the files of `name`."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._moves = stream.isatty()
        self._said_at, self._phase = -LINE_EVERY_S, ""

    def tell(self, state: FetchState) -> None:
        """Say it, where it is time to."""
        if self._moves:
            self._move(state)
            return
        now = time.monotonic()
        if state.phase == "looks" or (state.phase == self._phase and now - self._said_at < LINE_EVERY_S):
            return
        self._said_at, self._phase = now, state.phase
        print(f"{self._name}: {state.line}", file=self._stream, flush=True)

    def _move(self, state: FetchState) -> None:
        share = state.done_bytes / state.total_bytes if state.total_bytes else 0.0
        bar = "#" * round(BAR_WIDTH * share)
        end = "" if state.is_under_way else "\n"
        self._stream.write(f"\r\x1b[2K{self._name}: [{bar:<{BAR_WIDTH}}] {state.line}{end}")
        self._stream.flush()
