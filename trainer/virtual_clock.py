"""An event loop whose clock does not wait: where nothing is ready it jumps to the next timer.

Code that keeps to the loop's own time (`asyncio.sleep`, `asyncio.timeout`, `loop.time()`) runs through hours in seconds
and cannot tell. The clock stands still while a thread of the loop's executor works, so that what it brings back comes
at the time at which it was asked for. Other threads may hand in results with `call_soon_threadsafe`; the clock does not
wait for them, unless the loop has no timer at all.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any


class _JumpingSelector(selectors.DefaultSelector):
    """Does not sleep until a timer: it tells how long it would have slept."""

    def __init__(self) -> None:
        super().__init__()
        self.jumped_s = 0.0
        self.num_held = 0  # threads at work that the clock waits for

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or (timeout > 0 and self.num_held):
            return super().select(None)  # only a thread or a socket can bring something new
        ready = super().select(0)
        if not ready and timeout > 0:
            self.jumped_s += timeout
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """See the top of the file. Its time begins at 0 s."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds of the virtual clock."""
        return self._jumping.jumped_s

    def run_in_executor(  # type: ignore[override]  # the stub's types name the arguments one by one
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """As every loop's; the clock stands still meanwhile."""
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self._jumping.num_held += 1

        def let_go(_: Any) -> None:
            self._jumping.num_held -= 1

        future.add_done_callback(let_go)
        return future
