"""The GenRM servers behind the API: who gets which call, and who is alive.

    call --> a place on a ready server --> POST --> answer
               |                             |
               waits, in order of arrival    lost: another server, if there is one

A call goes to the server that its *affinity* (the conversation) prefers among those that are ready, so that calls about
one conversation find its prefix in one cache. Preference is by rendezvous hashing: a server that joins or leaves moves
the conversations of its own and no others. A server that has much more in flight than the others is passed over, which
is consistent hashing with bounded loads (Mirrokni et al., arXiv 1608.01350). How much a server may have in flight at
all follows what it says of its load (`wire.load`): what it could only queue waits here, for whichever server is free.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import msgspec

from reward_server.figures import read_figures
from reward_server.peer import FIRST_PAUSE_S, LONGEST_PAUSE_S, Call, Peer, Reply, busy_pause
from reward_server.prefix_cache import PrefixCache
from reward_server.seeds import derived_seed
from reward_server.startup import Startup
from wire.errors import ServiceError
from wire.load import LOOK_INTERVAL_S, Load, Room

HEALTH_INTERVAL_S = 1.0
HEALTH_TIMEOUT_S = 5.0
LOAD_BOUND = 1.25  # a server may have this many times the mean in flight before calls pass it over
LEAST_BOUND = 8  # calls in flight below which nobody is passed over
MAX_DEATHS = 3  # servers that may die over one call: a request that kills servers must not visit them all

# starting: never answered yet; suspect: a call to it broke, and its health has not answered since.
State = Literal["starting", "ready", "suspect", "lost", "leaving"]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Server:
    """One GenRM server of the pool. `room` is how many calls it gets at once; `last_sign` is when it last answered
    anything, in seconds of the loop's clock; `startup` is None where somebody else has started it."""

    peer: Peer
    room: Room
    state: State = "starting"
    in_flight: int = 0
    answers: int = 0
    losses: int = 0
    last_sign: float = 0.0
    startup: Startup | None = None
    cache: PrefixCache = field(default_factory=PrefixCache)
    scopes: set[asyncio.Timeout] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Where it is."""
        return self.peer.url

    def give_up_calls(self) -> None:
        """End every call in flight here; each goes to another server."""
        now = asyncio.get_running_loop().time()
        for scope in self.scopes:
            scope.reschedule(now)


@dataclass
class PooledCall(Call):
    """A call with the servers it was lost with, and how many of them gave no answer at all."""

    lost_with: list[str] = field(default_factory=list)
    deaths: int = 0
    server: str = ""


@dataclass(eq=False)
class _Waiter:
    affinity: int
    avoid: list[str]
    place: asyncio.Future[Server]


class Pool:
    """Routes calls to GenRM servers; an asynchronous context manager that watches their health while it is open.

    Args:
        session: carries the calls; see `peer.open_session`.
        token: the run's access token.
        max_in_flight: calls that one server gets at once, at the most.
        adaptive: whether a server gets fewer while it says that it cannot begin them, or preempts.
        health_timeout_s: a server that gives no sign for so long is lost.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        token: str,
        *,
        max_in_flight: int,
        adaptive: bool = True,
        health_timeout_s: float = 15.0,
    ) -> None:
        self._session, self._token = session, token
        self._max_in_flight, self._adaptive, self._health_timeout_s = max_in_flight, adaptive, health_timeout_s
        self._servers: dict[str, Server] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._waiters: deque[_Waiter] = deque()
        self.lost_calls = 0  # calls that were lost with a server, each counted once however often it was lost

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        watches = list(self._watches.values())
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    # --- membership

    @property
    def servers(self) -> list[Server]:
        """All of them, in the order they came."""
        return list(self._servers.values())

    @property
    def num_ready(self) -> int:
        """Servers that take calls."""
        return sum(server.state == "ready" for server in self._servers.values())

    @property
    def num_waiting(self) -> int:
        """Calls that wait for a place."""
        return len(self._waiters)

    @property
    def num_in_flight(self) -> int:
        """Calls that a server is at work on."""
        return sum(server.in_flight for server in self._servers.values())

    @property
    def room(self) -> int:
        """Calls that the ready servers get at once, all together."""
        return sum(server.room.size for server in self._servers.values() if server.state == "ready")

    @property
    def is_full(self) -> bool:
        """Whether one call more would wait, or would take the place that another one waits for."""
        return bool(self._waiters) or self.num_in_flight >= self.room

    def add(self, url: str) -> None:
        """Take a server in; it gets calls as soon as its `/health` answers. One that is here already stays."""
        url = url.rstrip("/")
        known = self._servers.get(url)
        if known is None:
            server = Server(Peer(self._session, url, self._token), Room(1, self._max_in_flight))
            self._servers[url] = server
            self._watches[url] = asyncio.create_task(self._follow(server), name=f"watch {url}")
        elif known.state == "leaving":
            self._set_state(known, "starting")

    def note_startup(self, url: str, startup: Startup) -> None:
        """How the start of a server goes that is here."""
        self._servers[url.rstrip("/")].startup = startup

    async def remove(self, url: str, deadline_s: float) -> None:
        """Let a server go: it gets no more calls, and has `deadline_s` seconds to answer those it has.

        Calls that it has not answered by then go to another server.

        Raises:
            ServiceError: there is no such server.
        """
        server = self._servers.get(url.rstrip("/"))
        if server is None:
            raise ServiceError(f"{url} is no server of this pool; it has {', '.join(self._servers) or 'none'}")
        self._set_state(server, "leaving")
        end = asyncio.get_running_loop().time() + deadline_s
        while server.in_flight and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.05)
        if server.state != "leaving":  # it was added again meanwhile
            return
        del self._servers[server.url]
        watch = self._watches.pop(server.url)
        watch.cancel()
        server.give_up_calls()
        await asyncio.gather(watch, return_exceptions=True)

    # --- calls

    async def post(self, path: str, message: Any, affinity: int, call: PooledCall) -> Reply:
        """POST `message` as JSON to a server of the pool until one answers; the caller sets the deadline.

        A call that is lost with its server (no connection, a 5xx, no sign of life) goes to another one. A busy server
        (408, 429) is asked again after a pause.

        Returns: the answer, of a status below 500 and not busy; a made-up 503 where `MAX_DEATHS` servers were lost.
        """
        body = msgspec.json.encode(message)
        pause = FIRST_PAUSE_S
        while True:
            server = await self._place(affinity, call.lost_with)
            call.server = server.url
            call.attempts += 1
            reply = await self._try_on(server, path, body)
            if reply is None or reply.is_failure:
                self._note_loss(call, server)
                call.deaths += reply is None
                if call.deaths >= MAX_DEATHS:
                    return Reply(503, b"every server that had this request was lost")
                if self.num_ready < 2:
                    await asyncio.sleep(pause)  # the same server again: not at once
            else:
                call.lost = False
                if not reply.is_busy:
                    return reply
                await asyncio.sleep(busy_pause(reply))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _note_loss(self, call: PooledCall, server: Server) -> None:
        if not call.lost_with:
            self.lost_calls += 1
        call.lost = True
        call.lost_with.append(server.url)
        server.losses += 1

    async def _try_on(self, server: Server, path: str, body: bytes) -> Reply | None:
        """The server's answer; None where there is none. Gives the place back."""
        try:
            async with asyncio.timeout(None) as scope:  # whoever finds the server lost ends the call through it
                server.scopes.add(scope)
                reply = await server.peer.send("POST", path, body)
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError from the scope is one too
            log.warning("%s%s: %s", server.url, path, error or type(error).__name__)
            if server.state == "ready":
                self._set_state(server, "suspect")  # its health decides whether it gets another call
            return None
        finally:
            server.scopes.discard(scope)
            server.in_flight -= 1
            self._deal()
        server.last_sign = asyncio.get_running_loop().time()
        if reply.is_failure:
            log.warning("%s%s: HTTP %d %s", server.url, path, reply.status, reply.text[:300])
        else:
            server.answers += 1
        return reply

    async def _place(self, affinity: int, avoid: list[str]) -> Server:
        """A server with room, its place taken; waits for one, first come, first served."""
        if not self._waiters:
            server = self._choose(affinity, avoid)
            if server is not None:
                server.in_flight += 1
                return server
        waiter = _Waiter(affinity, avoid, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            return await waiter.place
        except asyncio.CancelledError:
            if waiter.place.done() and not waiter.place.cancelled():
                waiter.place.result().in_flight -= 1
                self._deal()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def _deal(self) -> None:
        """Give the places that are free to those who wait, in their order."""
        while self._waiters:
            waiter = self._waiters[0]
            server = self._choose(waiter.affinity, waiter.avoid)
            if server is None:
                return
            self._waiters.popleft()
            if not waiter.place.done():
                server.in_flight += 1
                waiter.place.set_result(server)

    def _choose(self, affinity: int, avoid: list[str]) -> Server | None:
        """The server for a call; None where none has room."""
        ready = [server for server in self._servers.values() if server.state == "ready"]
        fresh = [server for server in ready if server.url not in avoid]
        free = [server for server in fresh or ready if server.in_flight < server.room.size]
        if len(free) < 2:
            return free[0] if free else None
        mean = (1 + sum(server.in_flight for server in ready)) / len(ready)
        bound = max(LEAST_BOUND, math.ceil(LOAD_BOUND * mean))
        light = [server for server in free if server.in_flight < bound]
        return max(light or free, key=lambda server: derived_seed(affinity, server.url))

    # --- health and load

    async def _follow(self, server: Server) -> None:
        """Ask after a server for as long as it is in the pool."""
        await asyncio.gather(self._watch(server), self._look_again_and_again(server))

    async def _look_again_and_again(self, server: Server) -> None:
        """Read its figures while it is ready: beside its health, which must not wait for them."""
        while True:
            if server.state == "ready":
                self._look(server, await read_figures(server.peer))
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _look(self, server: Server, figures: dict[str, list[float]]) -> None:
        """Take the figures in; where it did not answer, all stays as it is."""
        server.cache.update(figures)
        load = Load.of(figures)
        if load is not None and self._adaptive:
            server.room.look(load, server.in_flight)
            self._deal()

    async def _watch(self, server: Server) -> None:
        loop = asyncio.get_running_loop()
        while True:
            refused = await self._probe(server)
            silent = loop.time() - server.last_sign > self._health_timeout_s
            if server.state in ("ready", "suspect") and (refused or silent):
                self._set_state(server, "lost")
            if server.state == "lost" and (refused or self.num_ready):
                # Where no other server is ready, calls to a silent one may still come through: it may only be slow.
                server.give_up_calls()
            await asyncio.sleep(HEALTH_INTERVAL_S if server.state == "ready" else HEALTH_INTERVAL_S / 4)

    async def _probe(self, server: Server) -> bool:
        """Ask for `/health`; whether nobody listens there."""
        try:
            reply = await server.peer.get("/health", HEALTH_TIMEOUT_S)
        except TimeoutError:
            return False
        except (aiohttp.ClientError, OSError):
            return True
        if reply.status == 200:
            server.last_sign = asyncio.get_running_loop().time()
            if server.state in ("starting", "suspect", "lost"):
                self._set_state(server, "ready")
        return False

    def _set_state(self, server: Server, state: State) -> None:
        if server.state != state:
            log.info("%s is %s, it was %s", server.url, state, server.state)
            server.state = state
            self._deal()
