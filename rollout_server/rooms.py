"""How many completions each replica is to write at once, by what it says of its load. Torch-free.

A look asks every ready replica for one page of figures (`wire.load`) and sets its room in `Places`. Health is not
judged here: a replica that does not answer keeps its room, and the fleet's probes find out whether it lives.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

import aiohttp

from rollout_server.membership import Replica
from rollout_server.places import Members, Places
from wire.load import LOOK_INTERVAL_S, Load, Room
from wire.membership import BOOT_HEADER

LOOK_TIMEOUT_S = 5.0


class Rooms:
    """Keeps the replicas' rooms between a prompt's completions and the most that a replica is given.

    Args:
        session: carries the run's access token in its headers.
        members: the fleet; those that are ready are asked.
        places: where the rooms are kept.
        least: completions of one prompt (K), which one replica writes.
        most: completions that a replica is given at once at the most (`rollout_max_num_seqs`), and those of a new one.
    """

    def __init__(
        self, session: aiohttp.ClientSession, members: Members, places: Places, *, least: int, most: int
    ) -> None:
        self._session, self._members, self._places = session, members, places
        self._least, self._most = least, most
        self._rooms: WeakKeyDictionary[Replica, Room] = WeakKeyDictionary()

    async def follow(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def look(self) -> None:
        """Ask each ready replica once, and set its room."""
        await asyncio.gather(*(self._look_at(replica) for replica in self._members.ready()))

    async def _look_at(self, replica: Replica) -> None:
        load = await self._load_of(replica)
        if load is not None:
            room = self._rooms.setdefault(replica, Room(self._least, self._most))
            self._places.set_room(replica, room.look(load, self._places.in_flight(replica)))

    async def _load_of(self, replica: Replica) -> Load | None:
        """What it says; None where it does not answer, or not of that."""
        headers = {BOOT_HEADER: replica.boot_id} if replica.boot_id else {}
        deadline = aiohttp.ClientTimeout(total=LOOK_TIMEOUT_S)
        try:
            async with self._session.get(f"{replica.url}/metrics", headers=headers, timeout=deadline) as reply:
                return Load.read(await reply.text()) if reply.status == 200 else None
        except (aiohttp.ClientError, OSError, UnicodeDecodeError):  # a TimeoutError is an OSError
            return None
