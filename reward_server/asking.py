"""What one call to the reward service waits for, as it goes. Torch-free.

judges ---- an answer ----> over: the GenRM server that gave it is known now
  |  ^
  |  '--- the next attempt is not turned away within a while
  v
queue is full, or does not answer: from the first attempt that was turned away
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from reward_server.peer import CONNECT_TIMEOUT_S, Call
from wire.waits import WAITS, Wait

JUDGES = "judges"
QUEUE_IS_FULL = "queue is full"
DOES_NOT_ANSWER = "does not answer"
# An attempt that lasts so long was let in: a full queue is said at once, and a connection is there by then, or failed.
LET_IN_AFTER_S = {QUEUE_IS_FULL: 1.0, DOES_NOT_ANSWER: CONNECT_TIMEOUT_S + 1.0}


@dataclass
class Asking(Call):
    """A call with its wait; a context manager, at whose end nothing is waited for any more.

    `url` is the service's; `on_busy` is called each time that it says that its queue is full.
    """

    url: str = ""
    on_busy: Callable[[], None] = lambda: None
    _wait: Wait | None = None
    _sent: float = 0.0  # the last attempt, by the loop's clock
    _let_in: asyncio.TimerHandle | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self._wait = WAITS.begin(self._peer, JUDGES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turn()
        if self._wait is not None:
            WAITS.end(self._wait)

    @property
    def _peer(self) -> str:
        return f"judge {self.url}"

    def is_sent(self) -> None:
        """Unless it is turned away again, the service judges from now on."""
        super().is_sent()
        loop = asyncio.get_running_loop()
        self._sent = loop.time()
        if self._wait is not None and self._wait.reason != JUDGES:
            self._let_in = loop.call_later(LET_IN_AFTER_S[self._wait.reason], self._is_let_in)

    def is_refused(self) -> None:
        """Its queue is full."""
        super().is_refused()
        self._is_turned_away(QUEUE_IS_FULL)
        self.on_busy()

    def is_lost(self) -> None:
        """Nobody is there."""
        super().is_lost()
        self._is_turned_away(DOES_NOT_ANSWER)

    def is_answered(self) -> None:
        """It judged, since the attempt that was answered."""
        super().is_answered()
        self._is_let_in()

    def was_done_by(self, server: str) -> None:
        """The GenRM server that gave the verdict; none where nothing was generated."""
        if server and self._wait is not None:
            self._wait.peer = f"genrm {server}"

    def _is_turned_away(self, reason: str) -> None:
        self._turn()
        if self._wait is not None:
            self._wait.reason = reason

    def _is_let_in(self) -> None:
        self._turn()
        if self._wait is None or self._wait.reason == JUDGES:
            return
        WAITS.end(self._wait)
        self._wait = WAITS.begin(self._peer, JUDGES)
        self._wait.since = self._sent

    def _turn(self) -> None:
        """Whatever the attempt was taken for after a while, it is something else by now."""
        if self._let_in is not None:
            self._let_in.cancel()
            self._let_in = None
