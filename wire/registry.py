"""Which services of the cluster are there for runs to find: kind, URL, what tells one from another, and which run has
one that serves a single run. Ray-free.

`wire/placement.py` makes it an actor of the cluster, and `wire/announce.py` keeps a service's entry fresh. It holds no
secret: who finds a service still needs the token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from wire.claim import Owner

REWARD, REPLICA = "reward service", "replica"
ANNOUNCE_EVERY_S = 10.0
FORGET_AFTER_S = 45.0  # an entry that was not announced again for so long is of a service that is gone

Facts = dict[str, Any]


class Registry:
    """Announced services. Times in seconds of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[tuple[str, str], tuple[Facts, float]] = {}
        self._takers: dict[tuple[str, str], tuple[Owner, float]] = {}

    def announce(self, kind: str, url: str, facts: Facts) -> None:
        """There is a service at `url`; to be said again every ANNOUNCE_EVERY_S."""
        self._entries[kind, url] = facts, self._clock()

    def withdraw(self, kind: str, url: str) -> None:
        """There is no longer."""
        self._entries.pop((kind, url), None)

    def found(self, kind: str) -> dict[str, Facts]:
        """Facts of the services of a kind, by URL, the longest known first."""
        now = self._clock()
        self._entries = {key: entry for key, entry in self._entries.items() if now - entry[1] < FORGET_AFTER_S}
        return {url: facts for (of, url), (facts, _) in self._entries.items() if of == kind}

    def take(self, kind: str, url: str, owner: Owner, instead_of: str = "") -> Owner:
        """Who has the service at `url`: `owner`, unless another took it within FORGET_AFTER_S. One whose life is
        `instead_of` has it no longer. To be said again every ANNOUNCE_EVERY_S."""
        now = self._clock()
        self._takers = {key: taken for key, taken in self._takers.items() if now - taken[1] < FORGET_AFTER_S}
        holder, _ = self._takers.get((kind, url), (owner, now))
        if holder.life in (owner.life, instead_of):
            self._takers[kind, url] = owner, now
            return owner
        return holder
