"""Who waits for whom, since when and why: one instrument of a program, which all views read.

    with waiter("group 12"):                                  # whose waits these are, in this task and its children
        with waiting("replica http://10.0.0.7:8000", "writes"):
            ...

What is waited for now is the live table and what the watchdog measures; what has been waited for is the trace and how
busy each part was. The waiter is kept in a context variable, so a client need not be told on whose behalf it works.

Times are seconds of the running loop's clock. Not for threads other than the loop's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_waiter: ContextVar[str] = ContextVar("waiter", default="driver")


@dataclass(eq=False)
class Wait:
    """`who` waits for `peer` because it `reason`: "group 12" for "replica http://..." because it "writes".

    `peer` and `reason` may be corrected while it lasts, where it turns out later who the work was done by.
    """

    who: str
    peer: str
    reason: str
    since: float


Listener = Callable[[Wait, float], None]  # a wait that is over, and when it ended


class Waits:
    """The waits of one program."""

    def __init__(self) -> None:
        self._current: dict[Wait, None] = {}  # in order of their beginning
        self._listeners: list[Listener] = []

    @property
    def current(self) -> list[Wait]:
        """What is waited for now, the oldest first."""
        return list(self._current)

    def begin(self, peer: str, reason: str, *, who: str | None = None) -> Wait:
        """Begin a wait; `end` must follow. Where a block of code is the wait, `on` does both."""
        wait = Wait(who or _waiter.get(), peer, reason, asyncio.get_running_loop().time())
        self._current[wait] = None
        return wait

    def end(self, wait: Wait) -> None:
        """End it; once more has no effect."""
        if self._current.pop(wait, wait) is None:
            now = asyncio.get_running_loop().time()
            for listener in self._listeners:
                listener(wait, now)

    @contextmanager
    def on(self, peer: str, reason: str, *, who: str | None = None) -> Iterator[Wait]:
        """The block waits for `peer`, which `reason`."""
        wait = self.begin(peer, reason, who=who)
        try:
            yield wait
        finally:
            self.end(wait)

    @contextmanager
    def heard_by(self, listener: Listener) -> Iterator[None]:
        """Tell `listener` of every wait that ends while the context is open."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)


WAITS = Waits()
waiting = WAITS.on


@contextmanager
def waiter(name: str) -> Iterator[None]:
    """Waits that begin in the block, or in tasks that it starts, are `name`'s."""
    token = _waiter.set(name)
    try:
        yield
    finally:
        _waiter.reset(token)
