"""The trainer's way to the replicas: tokens in, tokens out, by least load. Torch-free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from types import MappingProxyType, TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from rollout_server.control_routes import KEEPALIVE_S
from rollout_server.membership import Replica
from rollout_server.part import Part
from rollout_server.places import NEWS_S, Members, Places
from rollout_server.rooms import Rooms
from wire.errors import ServiceError, Unauthorized
from wire.generation import Completion
from wire.membership import BOOT_HEADER
from wire.pieces import PACKED_PATH, Unframing
from wire.token import auth_headers
from wire.waits import WAITS, waiting

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
REFUSALS = frozenset({400, 405, 413, 422})  # it lies in the request; 409, 429 and 5xx lie in the replica
BACKGROUND_AGE = 2**62  # ages from here on: these prompts come after all others, however long they wait
PIECE_TOKENS = 1024  # a completion comes in pieces of so many tokens; what a lost replica had written is known by them

FLEET = "fleet"
WRITES = "writes"
HAS_NOBODY = "has no replica with the live weights"
HAS_NO_ROOM = "has no room"
RESTS = "rests after a failure"

NONE_KNOWN: Mapping[int, Completion] = MappingProxyType({})

CompletionFutures = Sequence["asyncio.Future[Completion]"]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. `stop_token_ids` end a completion and are part of it."""

    max_tokens: int
    temperature: float
    stop_token_ids: tuple[int, ...]
    top_p: float = 1.0


@dataclass(frozen=True)
class Order:
    """What is asked for: completion i of the prompt is drawn with `seed` + i. `salt` is called for every request. It is
    of the `background` until that event is set."""

    token_ids: Sequence[int]
    seed: int
    salt: Callable[[], str]
    sampling: Sampling
    background: asyncio.Event | None = None

    @property
    def gives_way(self) -> bool:
        """Whether it comes after all others."""
        return self.background is not None and not self.background.is_set()


class RequestRefused(ServiceError):
    """A replica refuses what it was asked for, as any other of its kind would."""


class _Left(Exception):
    """The replica left the fleet, or was lost, while it wrote."""


class RolloutClient:
    """Sends each prompt to the replica with the fewest completions to write.

    Args:
        members: the fleet.
        token: the run's access token.
        sampling: how completions are drawn.
        timeout_s: deadline of one prompt, retries on other replicas included. Time in which the fleet has nobody who
            writes does not count: the fleet has a limit of its own for that.
        least: completions of one prompt, which one replica gets whole: a replica's room then follows its load, between
            this and `room` (`rollout_server.rooms`). 0: each has `room`.
        room: completions that a replica writes at once; prompts beyond that wait here for whoever is free. 0: any.
    """

    def __init__(
        self, members: Members, token: str, sampling: Sampling, timeout_s: float, *, room: int = 0, least: int = 0
    ) -> None:
        self._members, self._token, self._sampling, self._timeout_s = members, token, sampling, timeout_s
        self._places, self._ages = Places(room), count()
        self._least, self._most = least, room
        self._tending: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()  # requests of prompts that come after all others
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=auth_headers(self._token),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=2**22,  # bytes: one event carries a whole completion
        )
        self._tending = [asyncio.create_task(self._places.follow(self._members))]
        if self._least and self._most:
            rooms = Rooms(self._session, self._members, self._places, least=self._least, most=self._most)
            self._tending.append(asyncio.create_task(rooms.follow()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        for task in self._tending:
            task.cancel()
        await asyncio.gather(*self._tending, return_exceptions=True)
        await self._session.close()

    @asynccontextmanager
    async def generate(
        self,
        token_ids: Sequence[int],
        num: int,
        *,
        seed: int,
        salt: Callable[[], str],
        known: Mapping[int, Completion] = NONE_KNOWN,
        sampling: Sampling | None = None,
        background: asyncio.Event | None = None,
    ) -> AsyncIterator[CompletionFutures]:
        """Ask for `num` completions of one prompt; yields a future for each, done as it arrives.

        All are written by one replica, which reads the prompt once. If that replica fails, or leaves, another one
        writes what is still missing, with the same seeds. Leaving the context cancels what is unfinished.

        Args:
            token_ids: the prompt.
            num: completions (K).
            seed: 63-bit; completion i is drawn with seed + i, by whichever replica.
            salt: called for every request; keeps prefixes of different weights apart in the replica's cache.
            known: completions that are there already, by index; they are not asked for.
            sampling: how these are drawn, if not as the others.
            background: with an event, they are of less importance until it is set: sent only where a replica has room
                and no other prompt waits for it. Time in which it waits for that does not count. Then it is its turn by
                its age, before all that came later. (vLLM's own priorities would need `--scheduling-policy priority`
                on every server: others refuse a request that has one.)

        Raises (from the futures):
            ServiceError: no replica wrote it within the deadline.
            RequestRefused: the replicas find a mistake in the request, such as a prompt longer than they were started
                for.
            Unauthorized: a replica refused the token.
        """
        futures = [asyncio.get_running_loop().create_future() for _ in range(num)]
        for index, completion in known.items():
            futures[index].set_result(completion)
        order = Order(token_ids, seed, salt, sampling or self._sampling, background)
        task = asyncio.create_task(self._fill(futures, order))
        try:
            yield futures
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for future in futures:
                if future.done() and not future.cancelled():
                    future.exception()  # marks it as seen
                future.cancel()

    def give_way(self) -> None:
        """End the requests of the background; they are asked for anew. For a push that lets requests be finished: it
        must not wait for those."""
        for stream in self._background:
            stream.cancel()

    async def _fill(self, futures: CompletionFutures, order: Order) -> None:
        """Fill the futures, from another replica after a failure, until all are done or the deadline has passed."""
        problem: Exception = ServiceError("no rollout replica holds the current weights")
        avoid: set[Replica] = set()
        loop = asyncio.get_running_loop()
        pause, spent_s, arrival = FIRST_PAUSE_S, 0.0, next(self._ages)
        try:
            while not all(future.done() for future in futures):
                replicas = self._members.ready()
                if not replicas:
                    await self._somebody()
                    continue
                if order.gives_way and not self._is_idle(replicas, arrival + BACKGROUND_AGE):
                    with waiting(FLEET, HAS_NO_ROOM):
                        await self._patiently(order, arrival + BACKGROUND_AGE)
                    continue
                started = loop.time()
                try:
                    async with asyncio.timeout(self._timeout_s - spent_s):
                        if avoid.issuperset(replicas):
                            if isinstance(problem, RequestRefused):
                                raise problem  # waiting changes nothing about it
                            avoid.clear()
                            with waiting(FLEET, RESTS):
                                await asyncio.sleep(pause)
                            pause = min(2 * pause, LONGEST_PAUSE_S)
                            continue
                        replica = self._places.choose(replicas, avoid)
                        if replica is None:
                            with waiting(FLEET, HAS_NO_ROOM):
                                await self._places.wait(arrival)
                            continue
                        problem = ServiceError(f"{replica.url}: it has not finished")  # should time run out meanwhile
                        with self._places.held(replica, futures), _written_by(replica, futures):
                            problem = await self._try(replica, futures, order) or problem
                        avoid.add(replica)
                finally:
                    spent_s += loop.time() - started
        except TimeoutError:
            self._fail(
                futures, ServiceError(f"a prompt was not answered within {self._timeout_s:.0f} s; last: {problem}")
            )
        except Exception as error:  # noqa: BLE001 - handed on to whoever awaits the completions
            self._fail(futures, error)

    def _is_idle(self, replicas: Sequence[Replica], age: int) -> bool:
        """Whether a replica has room that no prompt before one of this age waits for."""
        return not self._places.has_older(age) and self._places.choose(replicas, ()) is not None

    async def _patiently(self, order: Order, age: int) -> None:
        """Return when there may be room, or when the order no longer gives way."""
        assert order.background is not None
        waits = [asyncio.create_task(wait) for wait in (self._places.wait(age), order.background.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _somebody(self) -> None:
        """Return when there is a replica that writes."""
        with waiting(FLEET, HAS_NOBODY):
            while not self._members.ready():
                await self._members.changed(NEWS_S)

    async def _try(self, replica: Replica, futures: CompletionFutures, order: Order) -> Exception | None:
        """Let one replica write what is missing; returns what went wrong. Raises Unauthorized."""
        missing = [index for index, future in enumerate(futures) if not future.done()]
        # A task of its own: the fleet cancels it when it parts with the replica.
        stream = asyncio.create_task(self._write(replica, futures, missing, order))
        replica.streams.add(stream)
        if order.gives_way:
            self._background.add(stream)
        try:
            await asyncio.wait([stream])
            if stream.cancelled():
                raise _Left(replica.reason or "it left the fleet")
            stream.result()
        except Unauthorized:
            raise
        except RequestRefused as error:
            return error
        except (aiohttp.ClientError, ConnectionError, ServiceError, msgspec.MsgspecError, _Left) as error:
            if not isinstance(error, _Left):
                self._members.suspect(replica)
            self._members.count("rerouted_prompts")
            return ServiceError(f"{replica.url}: {error or type(error).__name__}")
        finally:
            replica.streams.discard(stream)
            self._background.discard(stream)
            stream.cancel()
            await asyncio.gather(stream, return_exceptions=True)
        return None

    async def _write(self, replica: Replica, futures: CompletionFutures, missing: Sequence[int], order: Order) -> None:
        """One request for all, or, where some are done, one for each that is missing: completion i of a request for
        all is drawn with seed + i, so the same tokens come of both."""
        if len(missing) == len(futures):
            await self._stream(replica, futures, order)
            return
        singles = [
            asyncio.create_task(
                self._stream(replica, [futures[index]], replace(order, seed=order.seed + index), first=index)
            )
            for index in missing
        ]
        try:
            await asyncio.gather(*singles)
        finally:
            for single in singles:
                single.cancel()
            await asyncio.gather(*singles, return_exceptions=True)

    @staticmethod
    def _fail(futures: CompletionFutures, error: Exception) -> None:
        for future in futures:
            if not future.done():
                future.set_exception(error)

    async def _stream(self, replica: Replica, futures: CompletionFutures, order: Order, *, first: int = 0) -> None:
        """One request for a completion for each of `futures`; the first of them is completion `first` of the prompt."""
        assert self._session is not None
        parts = [Part() for _ in futures]
        request = msgspec.json.encode(self._request(order, len(futures)))
        headers = {"Content-Type": "application/json"} | ({BOOT_HEADER: replica.boot_id} if replica.boot_id else {})
        url = replica.url + PACKED_PATH
        stream = Unframing()
        try:
            async with self._session.post(url, data=request, headers=headers) as reply:
                if reply.status == 401:
                    raise Unauthorized(f"{replica.url} refuses the token: give both sides the same token_file")
                if reply.status == 404:
                    raise RequestRefused(f"{replica.url} has no {PACKED_PATH}: start it with rollout_server.main")
                if reply.status != 200:
                    problem = f"HTTP {reply.status}: {(await reply.text())[:300]}"
                    if reply.status in REFUSALS:
                        raise RequestRefused(
                            f"{replica.url} refuses a prompt of {len(order.token_ids)} tokens: {problem}"
                        )
                    raise ServiceError(problem)
                async for block in reply.content.iter_any():
                    for piece in stream.feed(block):
                        if piece.error:
                            raise ServiceError(f"generation failed: {piece.error}")
                        part, future = parts[piece.index], futures[piece.index]
                        replica.num_tokens += part.add(piece)
                        if piece.finish_reason is not None and not future.done():
                            future.set_result(part.whole(piece, first + piece.index, replica.url))
            if not all(future.done() for future in futures):
                raise ServiceError("the stream ended before all completions were there")
        finally:
            rows = zip(parts, futures, strict=True)
            lost = sum(part.num_tokens for part, future in rows if not future.done())
            if lost:
                self._members.count("tokens_discarded", lost)

    @staticmethod
    def _request(order: Order, num: int) -> dict[str, Any]:
        return {
            "token_ids": list(order.token_ids),
            "sampling_params": {
                "n": num,
                "seed": order.seed,
                "max_tokens": order.sampling.max_tokens,
                "temperature": order.sampling.temperature,
                "top_p": order.sampling.top_p,
                "top_k": 0,
                "logprobs": 0,
                "stop_token_ids": list(order.sampling.stop_token_ids),
                "detokenize": False,
                "stream_interval": PIECE_TOKENS,
            },
            "cache_salt": order.salt(),
        }


@contextmanager
def _written_by(replica: Replica, futures: CompletionFutures) -> Iterator[None]:
    """Those of `futures` that are not done wait for `replica`, each until it is done or the block ends."""
    peer = f"replica {replica.url}"
    waits = {future: WAITS.begin(peer, WRITES) for future in futures if not future.done()}

    def end(future: asyncio.Future[Completion]) -> None:
        WAITS.end(waits[future])

    for future in waits:
        future.add_done_callback(end)
    try:
        yield
    finally:
        for future, wait in waits.items():
            future.remove_done_callback(end)
            WAITS.end(wait)
