"""Tells a person how far a fetch is: one line that moves in a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from reward_server.fetch_state import FetchState

LINE_EVERY_S = 30.0
BAR_WIDTH = 24


class LineTeller:
    """Gives `say` a line about the files of `name` when something new begins, and every LINE_EVERY_S."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._said_at, self._phase = 0.0, ""

    def tell(self, state: FetchState) -> None:
        """Say it, where it is time to."""
        now = time.monotonic()
        again = state.phase == self._phase
        if state.phase == "looks" or (again and (not state.is_under_way or now - self._said_at < LINE_EVERY_S)):
            return
        self._said_at, self._phase = now, state.phase
        self._say(f"{self._name}: {state.line}")


class BarTeller:
    """One line on `terminal` that moves."""

    def __init__(self, name: str, terminal: TextIO) -> None:
        self._name, self._terminal, self._is_over = name, terminal, False

    def tell(self, state: FetchState) -> None:
        """Draw it."""
        if self._is_over:
            return
        self._is_over = not state.is_under_way
        share = state.done_bytes / state.total_bytes if state.total_bytes else 0.0
        bar = "#" * round(BAR_WIDTH * share)
        self._terminal.write(f"\r\x1b[2K{self._name}: [{bar:<{BAR_WIDTH}}] {state.line}" + "\n" * self._is_over)
        self._terminal.flush()


def teller_for(stream: TextIO, name: str) -> LineTeller | BarTeller:
    """The one that suits the stream."""
    if stream.isatty():
        return BarTeller(name, stream)
    return LineTeller(name, lambda line: print(line, file=stream, flush=True))
