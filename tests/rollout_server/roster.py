"""Replicas that are ready, as the client of completions sees a fleet."""

from __future__ import annotations

from collections.abc import Sequence

from rollout_server.membership import Membership, Replica, State


class Roster:
    """A fleet of replicas that are ready, without a fleet's probes and pushes."""

    def __init__(self, *urls: str) -> None:
        self.membership = Membership()
        self.suspects: list[str] = []
        for url in urls:
            self.add(url)

    def add(self, url: str, boot_id: str = "") -> Replica:
        replica = Replica(url, 1, boot_id, state=State.READY)
        self.membership.enter(replica)
        return replica

    def ready(self) -> Sequence[Replica]:
        return self.membership.of(State.READY)

    async def changed(self, timeout_s: float) -> None:
        await self.membership.changed(timeout_s)

    def suspect(self, replica: Replica) -> None:
        self.suspects.append(replica.url)

    def count(self, name: str, number: int = 1) -> None:
        self.membership.counts[name] += number

    @property
    def in_flight(self) -> dict[str, int]:
        return {replica.url: replica.in_flight for replica in self.membership.replicas if replica.in_flight}
