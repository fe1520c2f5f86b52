"""Whether one judgement more is taken in, or told to come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fastapi import HTTPException

from reward_server.instruments import Instruments
from reward_server.pool import Pool

LONGEST_RETRY_AFTER_S = 30
BACKGROUND_RETRY_AFTER_S = 2


class Entering(Protocol):
    """Who begins judgements; `judge.Judge` is the real one."""

    @property
    def num_entering(self) -> int:
        """Judgements that were begun and have not asked the pool for a place yet."""


class Admission:
    """The door before the queue.

    Args:
        pool: the GenRM servers, with their queue.
        judge: has what was taken in and is not in the pool's queue yet: a burst is counted as it comes.
        max_queue: judgements that may wait.
        max_in_flight: calls that a server gets at once; for the time to come back while no server is ready.
        instruments: count who is turned away.
    """

    def __init__(
        self, pool: Pool, judge: Entering, instruments: Instruments, *, max_queue: int, max_in_flight: int
    ) -> None:
        self._pool, self._judge, self._instruments = pool, judge, instruments
        self._max_queue, self._max_in_flight = max_queue, max_in_flight

    def take_in(self, *, background: bool = False, joins: Callable[[], bool] = lambda: False) -> None:
        """Let a call pass, or raise.

        Args:
            background: it is to pass only where it need not wait.
            joins: whether it takes no place of its own, as the same is judged already; asked where it would be refused.

        Raises:
            HTTPException: 429 with Retry-After in seconds.
        """
        entering, free = self._judge.num_entering, max(0, self._pool.room - self._pool.num_in_flight)
        waiting = self._pool.num_waiting + max(0, entering - free)
        gives_way = background and (self._pool.is_full or entering >= free)
        if not (gives_way or waiting >= self._max_queue) or joins():
            return
        if gives_way:
            detail, wait_s = "all GenRM servers are busy", BACKGROUND_RETRY_AFTER_S
        else:
            self._instruments.refused_busy.inc()
            wait_s = min(LONGEST_RETRY_AFTER_S, 1 + waiting // (self._pool.room or self._max_in_flight))
            detail = f"{waiting} judgements wait already; ask again in {wait_s} s"
        raise HTTPException(429, detail, headers={"Retry-After": str(wait_s)})
