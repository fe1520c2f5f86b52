"""The asker's end of the channel, against services that lack it, turn it away, fall silent or speak nonsense."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha1

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

import reward_server.channel
from reward_server.client import RewardClient
from wire.channel import CHANNEL_PATH
from wire.errors import Unauthorized
from wire.judgement import Message, Verdict

TALK = (Message(role="user", content="sea?"),)
VERDICT = Verdict(scores=(4.0, 2.0), ranking=2)


class Service:
    """Refuses the first handshakes with `statuses`; then each connection does what the next of `manners` says, the last
    again and again:

    answers     each order as it comes
    hangs up    at the first order
    raves       answers the first order with what is no frame of the channel's
    is binary   answers it in a binary frame
    """

    def __init__(self, *manners: str, statuses: tuple[int, ...] = ()) -> None:
        self._manners, self._statuses = list(manners), list(statuses)
        self.num_handshakes = self.num_plain = 0
        self.plain_status = 200  # of POST

    async def open(self, request: web.Request) -> web.StreamResponse:
        self.num_handshakes += 1
        if self._statuses:
            return web.Response(status=self._statuses.pop(0))
        manner = self._manners.pop(0) if len(self._manners) > 1 else self._manners[0]
        line = web.WebSocketResponse()
        await line.prepare(request)
        async for frame in line:
            if manner == "answers":
                number = json.loads(frame.data)["id"]
                await line.send_json({"id": number, "status": 200, "body": VERDICT.model_dump()})
            elif manner == "raves":
                await line.send_str('{"id": "seven"}')
            elif manner == "is binary":
                await line.send_bytes(json.dumps({"id": 0, "status": 200, "body": VERDICT.model_dump()}).encode())
            elif manner == "hangs up":
                break
        return line

    async def plain(self, request: web.Request) -> web.Response:
        self.num_plain += 1
        return web.json_response(VERDICT.model_dump(), status=self.plain_status)


@asynccontextmanager
async def asked(service: Service, *, has_channel: bool = True, timeout_s: float = 20.0) -> AsyncIterator[RewardClient]:
    app = web.Application()
    app.router.add_post("/v1/judgement", service.plain)
    if has_channel:
        app.router.add_get(CHANNEL_PATH, service.open)
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        async with RewardClient(url, "token", timeout_s=timeout_s) as client:
            yield client


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_server.channel, "CLOSE_TIMEOUT_S", 0.1)


@pytest.mark.parametrize("manner", ["hangs up", "raves", "is binary"])
async def test_what_was_asked_over_a_lost_connection_is_asked_over_a_new_one(manner: str) -> None:
    service = Service(manner, "answers")
    async with asked(service) as client:
        verdicts = await asyncio.gather(*(client.judge(TALK, ("a", "b"), seed) for seed in range(20)))
    assert verdicts == [VERDICT] * 20
    assert (service.num_handshakes, service.num_plain) == (2, 0)


async def test_the_kernel_asks_whether_the_services_host_is_still_there() -> None:
    async with asked(Service("answers")) as client:
        await client.judge(TALK, ("a", "b"), 1)
        connection = client._channel._line._socket.get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for name, value in reward_server.channel.TCP_OPTIONS.items():
            assert connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value


async def test_who_gives_up_while_the_socket_is_full_takes_nobody_along() -> None:
    """In aiohttp all who wait for a full socket wait for one future, which the first that is cancelled cancels."""
    goes_on = asyncio.Event()

    class Slow(Service):
        async def open(self, request: web.Request) -> web.StreamResponse:
            line = web.WebSocketResponse(max_msg_size=0)
            await line.prepare(request)
            request.transport.pause_reading()
            await goes_on.wait()
            request.transport.resume_reading()
            async for frame in line:
                asked = json.loads(frame.data)
                if "order" in asked:
                    await line.send_json({"id": asked["id"], "status": 200, "body": VERDICT.model_dump()})
            return line

    async with asked(Slow()) as client:
        large = ["x" * 2**20] * 2
        asking = [asyncio.create_task(client.judge(TALK, large, seed)) for seed in range(12)]
        await asyncio.sleep(0.3)
        for task in asking[::3]:
            task.cancel()
        await asyncio.gather(*asking[::3], return_exceptions=True)
        asking.append(asyncio.create_task(client.judge(TALK, ("a", "b"), 99)))
        await asyncio.sleep(0.1)
        goes_on.set()
        left = [task for index, task in enumerate(asking) if index % 3 or index == 12]
        assert await asyncio.gather(*left) == [VERDICT] * len(left)


@pytest.mark.parametrize("status", [200, 400, 403, 404, 426, 501])
async def test_a_service_without_the_channel_is_asked_by_post_from_then_on(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service = Service("answers", statuses=(status,))
    async with asked(service) as client:
        for seed in range(3):
            assert await client.judge(TALK, ("a", "b"), seed) == VERDICT
    assert (service.num_handshakes, service.num_plain) == (1, 3)
    assert f"{CHANNEL_PATH}: HTTP {status}; verdicts are asked for one by one" in caplog.text


async def test_whoever_has_neither_route_is_tried_anew() -> None:
    """A proxy, say, before a service that is not there."""
    service = Service("answers", statuses=(404,))
    service.plain_status = 404
    async with asked(service) as client:
        assert (await client.judge(TALK, ("a", "b"), 1)).missing == "refused"
        assert await client.judge(TALK, ("a", "b"), 2) == VERDICT
    assert (service.num_handshakes, service.num_plain) == (2, 1)


async def test_a_service_without_the_route_is_asked_by_post() -> None:
    service = Service("answers")
    async with asked(service, has_channel=False) as client:
        assert await client.judge(TALK, ("a", "b"), 1) == VERDICT
    assert (service.num_handshakes, service.num_plain) == (0, 1)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_handshake_that_is_turned_away_for_now_is_tried_again(status: int) -> None:
    service = Service("answers", statuses=(status, status))
    async with asked(service) as client:
        assert await client.judge(TALK, ("a", "b"), 1) == VERDICT
    assert (service.num_handshakes, service.num_plain) == (3, 0)


async def test_a_handshake_without_the_token_is_said_so() -> None:
    async with asked(Service("answers", statuses=(401,))) as client:
        with pytest.raises(Unauthorized, match="refuses the token"):
            await client.judge(TALK, ("a", "b"), 1)


async def test_all_that_wait_for_a_connection_wait_for_the_same_one() -> None:
    service = Service("answers", statuses=(503,))
    async with asked(service) as client:
        await asyncio.gather(*(client.judge(TALK, ("a", "b"), seed) for seed in range(50)))
    assert service.num_handshakes == 2


async def test_a_host_that_accepts_and_never_shakes_hands_is_lost_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reward_server.channel, "CONNECT_TIMEOUT_S", 0.1)
    num_connections = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        await reader.read()
        writer.close()

    port = unused_port()
    server = await asyncio.start_server(silent, "127.0.0.1", port)
    async with server, RewardClient(f"http://127.0.0.1:{port}", "token", timeout_s=1.0) as client:
        assert (await client.judge(TALK, ("a", "b"), 1)).missing == "server_lost"
    assert num_connections > 1


async def test_who_asks_no_more_while_the_connection_is_made_leaves_it_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()
    connect = aiohttp.ClientSession.ws_connect

    async def slow(session: aiohttp.ClientSession, *args: object, **options: object) -> object:
        began.set()
        await go_on.wait()
        return await connect(session, *args, **options)

    monkeypatch.setattr(aiohttp.ClientSession, "ws_connect", slow)
    service = Service("answers")
    async with asked(service) as client:
        first, second = (asyncio.create_task(client.judge(TALK, ("a", "b"), seed)) for seed in range(2))
        await began.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        go_on.set()
        assert await second == VERDICT
    assert service.num_handshakes == 1


async def test_a_client_that_leaves_while_it_connects_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(aiohttp.ClientSession, "ws_connect", never)
    before = asyncio.all_tasks()
    async with asked(Service("answers")) as client:
        asking = asyncio.create_task(client.judge(TALK, ("a", "b"), 1))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("reads", [True, False])
async def test_a_service_that_fell_silent_keeps_nobody_from_leaving(reads: bool) -> None:
    asked_for, left = asyncio.Event(), asyncio.Event()

    async def shakes_hands_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = re.search(r"Sec-WebSocket-Key: (\S+)", request, re.IGNORECASE)[1]
        accept = b64encode(sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
        head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(f"{head}Sec-WebSocket-Accept: {accept}\r\n\r\n".encode())
        await reader.read(1)
        asked_for.set()
        while reads and await reader.read(4096):  # the farewell among it, which it does not answer
            pass
        await left.wait()
        writer.close()

    port = unused_port()
    async with (
        await asyncio.start_server(shakes_hands_only, "127.0.0.1", port),
        asyncio.timeout(5),
        RewardClient(f"http://127.0.0.1:{port}", "token", timeout_s=100.0) as client,
    ):
        more_than_buffers_hold = ["x" * 2**21] * 2
        asking = [asyncio.create_task(client.judge(TALK, more_than_buffers_hold, seed)) for seed in range(3)]
        await asked_for.wait()
        await asyncio.sleep(0.2)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    left.set()
