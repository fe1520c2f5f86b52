"""Who has how much to write, and which prompts wait for room: the oldest first. Torch-free."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

from rollout_server.membership import Replica

NEWS_S = 5.0  # a wait for the fleet looks up so often, whatever it was told


class Members(Protocol):
    """The fleet as the client sees it; `rollout_server.fleet.Fleet` is the real one."""

    def ready(self) -> Sequence[Replica]:
        """Replicas that hold the live version; asked for every request."""

    async def changed(self, timeout_s: float) -> None:
        """Return when `ready` may have changed, or after `timeout_s`."""

    def suspect(self, replica: Replica) -> None:
        """A request to it failed."""

    def count(self, name: str, number: int = 1) -> None:
        """Count `rerouted_prompts` and `tokens_discarded`."""


class Places:
    """Completions in the replicas' hands.

    A prompt in a replica's own queue is bound to that replica: it waits though another one has come that has nothing to
    write, and it is lost with it. So prompts beyond what the replicas write at once wait here.

    Args:
        room: completions that a replica writes at once, unless it has a room of its own; 0: any number.
    """

    def __init__(self, room: int) -> None:
        self._room = room or math.inf
        self._open: Counter[Replica] = Counter()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap by the prompts' age
        self._arrivals = count()

    def choose(self, replicas: Sequence[Replica], avoid: Container[Replica]) -> Replica | None:
        """The replica with the fewest completions to write; None where all that are not to be avoided are full."""
        best, fewest = None, math.inf
        for replica in replicas:
            num = self._open.get(replica, 0)
            if num < min(fewest, self.room(replica)) and replica not in avoid:
                best, fewest = replica, num
        return best

    def room(self, replica: Replica) -> float:
        """Completions that it writes at once; infinite where there is no limit."""
        return replica.room or self._room

    def set_room(self, replica: Replica, num: int) -> None:
        """It writes `num` completions at once from now on; of those that it has beyond that, none is taken away."""
        more = num - max(self.room(replica), self._open.get(replica, 0))
        replica.room = num
        if more > 0:
            self.wake(int(more))

    def in_flight(self, replica: Replica) -> int:
        """Completions that it has to write."""
        return self._open.get(replica, 0)

    @contextmanager
    def held(self, replica: Replica, futures: Sequence[asyncio.Future[Any]]) -> Iterator[None]:
        """Those of `futures` that are not done are the replica's to write, each until it is done or the block ends."""

        def give_back(_: Any) -> None:
            self._open[replica] -= 1
            if self._open[replica] < self.room(replica):
                self.wake(1)
            if not self._open[replica]:
                del self._open[replica]

        missing = [future for future in futures if not future.done()]
        self._open[replica] += len(missing)
        for future in missing:
            future.add_done_callback(give_back)
        try:
            yield
        finally:
            for future in missing:
                if future.remove_done_callback(give_back):  # else it was called, or is about to be
                    give_back(future)

    def has_older(self, age: int) -> bool:
        """Whether a prompt waits that comes before one of this age."""
        return any(other < age and not future.done() for other, _, future in self._waiting[:1])

    async def wait(self, age: int) -> None:
        """Return when there may be room; a prompt of smaller `age`, the number of its arrival, comes first."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (age, next(self._arrivals), future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.wake(1)  # it was this one's turn, and it has gone
            raise

    async def follow(self, members: Members) -> None:
        """Wake those that have room, or nobody to wait for, by the replicas that came and went; until cancelled."""
        while True:
            await members.changed(NEWS_S)
            replicas = members.ready()
            room = sum(max(0, self.room(replica) - self._open.get(replica, 0)) for replica in replicas)
            self.wake(room if replicas else len(self._waiting))

    def wake(self, num: float) -> None:
        """Wake the oldest `num` that wait."""
        while num > 0 and self._waiting:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)
                num -= 1
