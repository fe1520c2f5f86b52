"""`python -m benchmarks.standin_replica NUM ...`: what many rollout replicas look like from outside, without a model.

Each speaks, on a loopback port of its own, the routes of a replica that the driver and the learner use, behind the
project's own gate (`rollout_server/gate.py`). All live in this one process, so that what the driver itself costs can
be measured alone. A completion's length follows from its seed, on whichever replica. A replica writes `--slots`
completions at once, the others queue; a pause (mode `keep`) stops its clock.

The first line of output is a JSON list of the URLs. Then a line of input takes replicas away or gives them back, and
an empty line of output says that it is done:

    {"take": [0, 3]}    their connections are cut and new ones refused
    {"give": [3]}       they answer again, --start_s later, at the same URL: with another boot id and no weights
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

import msgspec
import numpy as np
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from benchmarks.standin_genrm import read_body
from rollout_server.gate import WeightGateMiddleware
from wire.generation import VersionSpan
from wire.pieces import LOGPROB, MEDIA_TYPE, PACKED_PATH, TOKEN_ID, Piece, framed

ADDRESS = "127.0.0.1"
TOKEN = 7  # the one token that is ever written, but for the stop token at the end


def length_of(seed: int, mean: float, spread: float, longest: int) -> int:
    """Tokens of the completion of this seed: log-normal of mean `mean` and sigma `spread`, cut to 1..`longest`."""
    drawn = Random(seed).lognormvariate(math.log(mean) - spread**2 / 2, spread)
    return min(longest, max(1, round(drawn)))


class Clock:
    """Seconds that a replica has worked: it stands still while the replica is paused."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._started, self._worked = now, now(), 0.0
        self._runs = asyncio.Event()
        self._runs.set()

    @property
    def is_paused(self) -> bool:
        """Whether it stands still."""
        return not self._runs.is_set()

    def read(self) -> float:
        """Seconds worked so far."""
        return self._worked + (0.0 if self.is_paused else self._now() - self._started)

    def pause(self) -> None:
        """Stop."""
        self._worked = self.read()
        self._runs.clear()

    def resume(self) -> None:
        """Go on."""
        if self.is_paused:
            self._started = self._now()
            self._runs.set()

    async def until(self, mark: float) -> None:
        """Return when it reads `mark` or later, and runs."""
        while self.is_paused or self.read() < mark:
            await self._runs.wait()
            await asyncio.sleep(mark - self.read())


class _Sampling(msgspec.Struct):
    n: int
    seed: int
    max_tokens: int
    stop_token_ids: list[int]
    stream_interval: int


class _Order(msgspec.Struct):
    sampling_params: _Sampling


class Replica:
    """The ASGI application of one replica, from one boot to its end; its gate stands before it."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self._flags, self._version = flags, "default"
        self._clock = Clock(asyncio.get_running_loop().time)
        # When each free slot became free, by the clock. A completion that waited begins then: on a busy machine this
        # process's timers are late, and an engine has none.
        self._slots: asyncio.Queue[float] = asyncio.Queue()
        for _ in range(flags.slots):
            self._slots.put_nowait(0.0)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer one request."""
        path = scope["path"].lstrip("/")
        body = await read_body(receive)
        if scope["path"] == PACKED_PATH:
            await self._generate(msgspec.json.decode(body, type=_Order).sampling_params, receive, send)
        else:
            answer = await self._control(path, body)
            await _start(send, 200 if answer is not None else 404, b"application/json")
            await _send(send, json.dumps(answer).encode())

    async def _control(self, path: str, body: bytes) -> dict[str, Any] | None:
        if path == "pause":
            self._clock.pause()
        elif path == "resume":
            self._clock.resume()
        elif path == "init_weight_transfer_engine":
            await asyncio.sleep(self._flags.open_s)
        elif path == "update_weights":
            await asyncio.sleep(self._flags.load_s)
        elif path == "finish_weight_update":
            self._version = json.loads(body)["weight_version"]
        elif path not in ("start_weight_update", "get_world_size", "is_paused", "weight_info"):
            return None
        return {"world_size": 1, "is_paused": self._clock.is_paused, "weight_version": self._version}

    async def _generate(self, order: _Sampling, receive: Any, send: Any) -> None:
        await _start(send, 200, MEDIA_TYPE.encode())
        async with asyncio.TaskGroup() as tasks:
            writers = [tasks.create_task(self._write(order, index, send)) for index in range(order.n)]
            watch = tasks.create_task(_cancel_at_hang_up(receive, writers))
            await asyncio.wait(writers)
            watch.cancel()
        await _send(send, b"")

    async def _write(self, order: _Sampling, index: int, send: Any) -> None:
        """One completion, in pieces; a piece is stamped with the version that began it, never a younger one."""
        flags = self._flags
        length = length_of(order.seed + index, flags.mean_tokens, flags.spread, order.max_tokens)
        stop = order.stop_token_ids[0] if length < order.max_tokens and order.stop_token_ids else None
        starts: list[tuple[str, int]] = []  # each version with the first of its tokens
        arrived = self._clock.read()
        mark, written = max(await self._slots.get(), arrived), 0
        try:
            while written < length:
                size = min(order.stream_interval, length - written)
                if not starts or starts[-1][0] != self._version:
                    starts.append((self._version, written))
                mark += size * flags.token_s
                await self._clock.until(mark)
                written += size
                ids, logprobs = _packed(size, stop if written == length else None)
                piece = Piece(index, ids, logprobs)
                if written == length:
                    piece.finish_reason = "length" if stop is None else "stop"
                    piece.versions = _spans(starts, length)
                await _send(send, framed(piece), more=True)
        finally:
            self._slots.put_nowait(min(mark, self._clock.read()))


def _spans(starts: Sequence[tuple[str, int]], length: int) -> tuple[VersionSpan, ...]:
    ends = [start for _, start in starts[1:]] + [length]
    return tuple(VersionSpan(version, start, end) for (version, start), end in zip(starts, ends, strict=True))


@cache
def _packed(size: int, stop: int | None) -> tuple[bytes, bytes]:
    """So many tokens and their log-probs."""
    ids = [TOKEN] * size if stop is None else [TOKEN] * (size - 1) + [stop]
    return np.array(ids, TOKEN_ID).tobytes(), np.full(size, -0.5, LOGPROB).tobytes()


async def _cancel_at_hang_up(receive: Any, writers: list[asyncio.Task[None]]) -> None:
    await receive()  # the body is read: what comes now is the end of the connection
    for writer in writers:
        writer.cancel()


async def _start(send: Any, status: int, kind: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})


async def _send(send: Any, body: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


class Port:
    """A loopback port with a replica behind it, or nobody."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self._flags, self.port = flags, 0
        self._listener: asyncio.Server | None = None
        self._state = ServerState()

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """Requests that are being answered."""
        return set(self._state.tasks)

    async def give(self) -> None:
        """Boot a replica here."""
        await asyncio.sleep(self._flags.start_s)
        app: Any = WeightGateMiddleware(Replica(self._flags))
        config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
        config.load()
        state = self._state = ServerState()
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: HttpToolsProtocol(config=config, server_state=state, app_state={}), ADDRESS, self.port
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    def take(self) -> None:
        """Cut its connections and refuse new ones."""
        if self._listener is not None:
            self._listener.close()
        self._listener = None
        for connection in list(self._state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description="Stand-in rollout replicas.", allow_abbrev=False)
    parser.add_argument("num", type=int, help="Replicas.")
    parser.add_argument("--slots", type=int, default=128, help="Completions that a replica writes at once.")
    parser.add_argument("--mean_tokens", type=float, default=200.0, help="Mean length of a completion.")
    parser.add_argument("--spread", type=float, default=0.5, help="Sigma of the log-normal of the lengths; 0: equal.")
    parser.add_argument("--token_s", type=float, default=0.0, help="Seconds a token.")
    parser.add_argument("--open_s", type=float, default=0.0, help="Seconds to join a transfer group.")
    parser.add_argument("--load_s", type=float, default=0.0, help="Seconds to receive and load a version.")
    parser.add_argument("--start_s", type=float, default=0.0, help="Seconds to start.")
    return parser.parse_args()


async def serve(flags: argparse.Namespace) -> None:
    """Serve until the input ends."""
    ports = [Port(flags) for _ in range(flags.num)]
    await asyncio.gather(*(port.give() for port in ports))
    print(json.dumps([f"http://{ADDRESS}:{port.port}" for port in ports]), flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        order = json.loads(line)
        for index in order.get("take", ()):
            ports[index].take()
        await asyncio.gather(*(ports[index].give() for index in order.get("give", ())))
        print(flush=True)
    for port in ports:
        port.take()
    await asyncio.gather(*(task for port in ports for task in port.tasks), return_exceptions=True)


def main() -> None:
    """Serve on the loopback interface until standard input is closed."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments()))


if __name__ == "__main__":
    main()
