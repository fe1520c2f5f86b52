"""Progress for people: a bar in a terminal, and plain lines in a log."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 30.0


class LogLines(tqdm):  # type: ignore[type-arg]  # its stub is generic, it is not
    """A bar for a stream that is no terminal: no carriage returns, but a line every LINE_EVERY_S and one at the end.

    Where `postfix` is set after each advance, there is a line for each: what the postfix says belongs to it.
    """

    _said_at: float | None = None
    _said_n: float = 0
    leave: bool

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """As tqdm's; the first one of an advance makes a line."""
        super().set_postfix_str(s, refresh=False)
        if refresh and self.n != self._said_n:
            self._say()
        elif refresh:
            self.refresh()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write the line, where it is time to."""
        now = time.monotonic()
        if self._said_at is None:
            self._said_at, self._said_n = now, self.n
        elif now - self._said_at >= LINE_EVERY_S:
            self._say()
        return True

    def clear(self, nolock: bool = False) -> None:
        """A line in a log stays."""

    def close(self) -> None:
        """The last line, of a bar that is to stay."""
        if not self.disable and self.leave:
            self._say()
        self.leave, self.fp = False, io.StringIO()
        super().close()

    def _say(self) -> None:
        self._said_at, self._said_n = time.monotonic(), self.n
        self.fp.write(f"{str(self).strip()}\n")
        self.fp.flush()


def progress_bar(*arguments: Any, **options: Any) -> tqdm[Any]:
    """tqdm's bar, or lines where stderr is no terminal."""
    return (tqdm if sys.stderr.isatty() else LogLines)(*arguments, **options)
