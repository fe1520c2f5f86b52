"""How many of an evaluation's requests may go at once, and which of them no longer give way to training.

    gives way -- its turn, by the pace --> ordinary priority

A request that gives way is sent where there is room and nobody else waits. Where training keeps a part always full that
never happens, so the evaluation has a pace: of its N requests, N x steps / window are to be under way or done after so
many steps. What is behind that loses its patience, the oldest first, and only as many as the share allows that may be
taken from training: share x (what training asks for a step) x steps. So it ends after window steps, or after
N / (share x what training asks for a step), whichever is later; and it costs training no more than the share.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Patience:
    """The requests of one kind in one evaluation.

    Args:
        num: requests in all (N).
        at_once: so many of those that give way are sent at once.
        window: steps within which all are to be under way.
        per_step: requests that may lose their patience a step, on average; a fraction where it is less than one.
    """

    def __init__(self, num: int, *, at_once: int, window: float, per_step: float) -> None:
        self._num, self._window, self._per_step = num, window, per_step
        self._places = asyncio.Semaphore(at_once)
        self._patient: deque[asyncio.Event] = deque()  # of those that give way, the oldest first
        self._num_steps = self._num_done = self._num_hurried = 0
        self._num_due = 0  # that may still lose their patience

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[asyncio.Event]:
        """Wait for a place, and have it for the block. The event is set when the request no longer gives way; its place
        is then another's."""
        await self._places.acquire()
        hurry = asyncio.Event()
        self._patient.append(hurry)
        self._hurry()
        try:
            yield hurry
        finally:
            if not hurry.is_set():
                self._patient.remove(hurry)
                self._places.release()
                self._num_done += 1

    def step_done(self) -> None:
        """Training has done a step."""
        self._num_steps += 1
        behind = self._num * min(1.0, self._num_steps / self._window) - self._num_done - self._num_hurried
        allowed = self._per_step * self._num_steps - self._num_hurried
        self._num_due = max(0, int(min(behind, allowed)))
        self._hurry()

    def _hurry(self) -> None:
        while self._num_due and self._patient:
            self._patient.popleft().set()
            self._places.release()
            self._num_due -= 1
            self._num_hurried += 1
