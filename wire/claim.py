"""Whose a server is. Its host keeps the claim, so that two drivers never have one server between them.

    take (who has it is dead, or silent for LEASE_S) --> renew --> renew --> ... --> silence for orphan_timeout_s: over

A driver's claim stands while it is renewed, every RENEW_S. Ray knows of a driver that was killed at once; one that
froze, or that the network cut off, has a lease to come round in. Where nobody comes, the claim is over, and the host
ends itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from wire.errors import ServiceError
from wire.identity import Identity

RENEW_S = 5.0
LEASE_S = 60.0
LEAST_ORPHAN_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Owner:
    """One life of a driver: the folder of its run, a name drawn for this life, and Ray's id of its job. What it has
    waits `orphan_timeout_s` for the next driver when it falls silent."""

    run: str
    life: str
    job: str
    orphan_timeout_s: float


@dataclass(frozen=True)
class Held:
    """What a host says of itself. host -> driver.

    `index` is its place among those of its kind, `silent_s` the seconds since its owner was last heard of, `ends_in_s`
    those until it ends itself if nobody comes; `url` its server's, None where there is none yet.
    """

    identity: Identity
    index: int
    owner: Owner
    silent_s: float
    ends_in_s: float
    url: str | None


class NotYours(ServiceError):
    """A server has another owner by now: it is no longer this driver's to use, nor to end."""


class Claim:
    """The owner of one server, from one take to the next. Its calls may come from any thread.

    Args:
        owner: who asked for the server.
        is_kept: the server outlives its driver, so that the claim is over after a silence; else Ray ends it.
        clock: in seconds.
    """

    def __init__(self, owner: Owner, *, is_kept: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_kept, self._clock = is_kept, clock
        self._lock = threading.Lock()
        self._heard, self._is_over = clock(), False
        self.owner = owner

    @property
    def silent_s(self) -> float:
        """Seconds since the owner was heard of."""
        return self._clock() - self._heard

    @property
    def ends_in_s(self) -> float:
        """Seconds until it is over, if nothing is heard; infinite where it never is."""
        return max(0.0, self._limit_s - self.silent_s)

    @property
    def _limit_s(self) -> float:
        """A driver that would have its servers end with it may have taken one over that cannot."""
        return max(self.owner.orphan_timeout_s, LEAST_ORPHAN_TIMEOUT_S) if self._is_kept else float("inf")

    def take(self, owner: Owner, instead_of: str, *, is_dead: bool) -> bool:
        """Give it to `owner`; whether that was done.

        Args:
            owner: who asks.
            instead_of: the life that has it, as far as the caller knows. Another may have been faster.
            is_dead: whether the caller knows that this life is over; else its lease must have run out.
        """
        with self._lock:
            if self._is_over or self.owner.life != instead_of or not (is_dead or self.silent_s > LEASE_S):
                return False
            self.owner, self._heard = owner, self._clock()
            return True

    def renew(self, life: str) -> None:
        """The driver of this life goes on. Raises NotYours where it does not have the claim."""
        with self._lock:
            if self._is_over or self.owner.life != life:
                by = "nobody, and ends" if self._is_over else f"the driver of {self.owner.run}"
                raise NotYours(f"the server was taken over by {by}")
            self._heard = self._clock()

    def end_if_over(self, *, is_in_use: bool) -> bool:
        """Whether nobody has come in time; from then on nobody can. A server that was never started (`is_in_use`) is
        nothing to come back for: a lease is time enough."""
        with self._lock:
            limit_s = min(self._limit_s, LEASE_S) if self._is_kept and not is_in_use else self._limit_s
            self._is_over = self._is_over or self.silent_s > limit_s
            return self._is_over
