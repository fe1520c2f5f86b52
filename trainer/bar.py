"""Progress for people: a bar in a terminal, and a plain line now and then in a log."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 30.0


class LogLines(tqdm):  # type: ignore[type-arg]  # its stub is generic, it is not
    """A bar for a stream that is no terminal: no carriage returns, a line every LINE_EVERY_S and one at the end."""

    _said_at: float | None = None
    leave: bool

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write the line, where it is time to."""
        now = time.monotonic()
        if self._said_at is None:
            self._said_at = now
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
        self._said_at = time.monotonic()
        self.fp.write(f"{str(self).strip()}\n")
        self.fp.flush()


def progress_bar(*arguments: Any, **options: Any) -> tqdm[Any]:
    """tqdm's bar, or lines where stderr is no terminal."""
    return (tqdm if sys.stderr.isatty() else LogLines)(*arguments, **options)
