"""One deadline for everything that a call waits for, and work that nobody has to join."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar

from wire.errors import ServiceError

Result = TypeVar("Result")

POLL_S = 0.002
SHORTEST_S = 0.001  # a library takes 0 for no deadline at all


class TransferBroken(ServiceError):
    """A member, or the way to it, failed while the transfer group formed or while weights were on their way."""


class Deadline:
    """A point in monotonic time, `timeout_s` seconds from now."""

    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s

    def left(self) -> float:
        """Seconds that remain; never negative."""
        return max(0.0, self._end - time.monotonic())

    def timedelta(self) -> timedelta:
        """What remains, for torch; never zero."""
        return timedelta(milliseconds=math.ceil(1000 * max(SHORTEST_S, self.left())))

    def for_peers(self) -> float:
        """Seconds that those who are waited for may take: a tenth less, at most 1 s less, so that their answer, an
        error where need be, is here before the deadline. Who has not answered by then is frozen or cut off."""
        left = self.left()
        return left - min(1.0, 0.1 * left)


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """Run `work` in a daemon thread. Unlike an executor's, it holds up neither its caller nor the interpreter's end
    where it hangs."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is the future's to tell
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def wait_for(future: Future[Any], deadline: Deadline, check: Callable[[], Any] = lambda: None) -> None:
    """Wait for background work; `check` is called meanwhile, and may raise.

    Raises:
        TransferBroken: the deadline has passed.
        Exception: what the work raised.
    """
    while not future.done():
        check()
        if deadline.left() <= 0:
            raise TransferBroken("the deadline has passed")
        time.sleep(POLL_S)
    future.result()
