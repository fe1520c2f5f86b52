"""Who belongs to the fleet, in which state, and since when.

    starting -- answers --> syncing -- holds the live version --> ready -- asked to leave --> draining --> gone
                               ^                                    |
                               '------- answers again ------- lost <'  (from any state)

An *epoch* is the time between two changes of the set of replicas that write. Torch-free.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from wire.generation import PolicyVersion
from wire.membership import Member


class State(StrEnum):
    """Where a replica stands."""

    STARTING = "starting"  # not answered yet
    SYNCING = "syncing"  # a member without the live version, or one that is taking it: gets no prompts
    READY = "ready"
    DRAINING = "draining"  # writes what it has, gets no more
    LOST = "lost"  # died, froze, or was cut off; what it may still say is not heard


def now_s() -> float:
    """Seconds of the running loop's clock; of the clock that loops have by default, where none runs."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


@dataclass(eq=False)
class Replica:
    """One rollout server, from one boot of it to its end.

    `world_size` is its number of workers; `version` what it took last, whole; `streams` the prompts it is writing for;
    `room` how many completions it is to write at once, 0 as many as the settings say; `num_tokens` what it has written;
    `paused_s` how long its generation stood still for pushes; `since` the time of the last change of state, by the
    loop's clock.
    """

    url: str
    world_size: int = 0
    boot_id: str = ""
    is_started: bool = False  # by this run, which then also ends it
    has_joined: bool = False  # it has been ready once
    state: State = State.STARTING
    version: PolicyVersion | None = None
    reason: str = ""
    since: float = field(default_factory=now_s)
    streams: set[asyncio.Task[Any]] = field(default_factory=set)
    room: int = 0
    num_tokens: int = 0
    paused_s: float = 0.0
    last_pause_s: float = 0.0

    @property
    def member(self) -> Member:
        """What a transfer needs to know of it."""
        return Member(self.url, self.world_size, self.boot_id)

    @property
    def in_flight(self) -> int:
        """Prompts that it is writing for."""
        return len(self.streams)


class Membership:
    """The fleet's replicas and their states.

    Args:
        say: told of every change that a person should know of.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say
        self.replicas: list[Replica] = []
        self.epoch = 0
        self.counts: Counter[str] = Counter()  # joins, losses, leaves; the fleet adds its own
        self._changed = asyncio.Event()

    def of(self, *states: State) -> list[Replica]:
        """Those in one of the states, in order of arrival."""
        return [replica for replica in self.replicas if replica.state in states]

    def find(self, url: str) -> Replica | None:
        """The replica at `url`; None where there is none."""
        return next((replica for replica in self.replicas if replica.url == url), None)

    def enter(self, replica: Replica) -> None:
        """Take in one that is new, in place of a lost one at the same URL."""
        self.replicas = [other for other in self.replicas if other.url != replica.url] + [replica]
        self._notify()

    def hold(self, replicas: Iterable[Replica]) -> None:
        """No new prompts for them: they are about to take new weights."""
        for replica in replicas:
            if replica.state is State.READY:
                self._move(replica, State.SYNCING)

    def admit(self, replica: Replica, version: PolicyVersion) -> None:
        """It holds `version`, the live one, and may write."""
        if replica.state is not State.SYNCING:  # lost or asked to leave meanwhile
            return
        replica.version = version
        self._move(replica, State.READY)
        if not replica.has_joined:
            replica.has_joined = True
            self._begin_epoch("joins")
            self._say(f"replica {replica.url} joined with version {version.label}; epoch {self.epoch}")

    def lose(self, replica: Replica, reason: str) -> None:
        """It is gone: its prompts go to others, and nothing that it may still say is heard."""
        if replica.state is State.LOST or replica not in self.replicas:
            return
        replica.reason, replica.version = reason, None
        self._move(replica, State.LOST)
        self._hand_over(replica)
        if replica.has_joined:
            self._begin_epoch("losses")
        self._say(f"replica {replica.url} is lost: {reason}; epoch {self.epoch}")

    async def leave(self, replica: Replica, deadline_s: float) -> None:
        """Let it finish what it writes, for `deadline_s` seconds; the rest goes to others. Then it is forgotten."""
        if replica.state is State.LOST:
            self.forget(replica)
            return
        self._move(replica, State.DRAINING)
        end = now_s() + deadline_s
        while replica.in_flight and now_s() < end:
            await self.changed(min(0.2, max(0.0, end - now_s())))
        self._hand_over(replica)
        self.forget(replica)
        self._begin_epoch("leaves")
        self._say(f"replica {replica.url} left; epoch {self.epoch}")

    def forget(self, replica: Replica) -> None:
        """Strike a lost one off the list."""
        self.replicas = [other for other in self.replicas if other is not replica]

    async def changed(self, timeout_s: float) -> None:
        """Return at the next change of any state, or after `timeout_s` seconds."""
        event = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass

    def _move(self, replica: Replica, state: State) -> None:
        replica.state, replica.since = state, now_s()
        self._notify()

    def _begin_epoch(self, reason: str) -> None:
        self.epoch += 1
        self.counts[reason] += 1
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @staticmethod
    def _hand_over(replica: Replica) -> None:
        for stream in list(replica.streams):
            stream.cancel()
