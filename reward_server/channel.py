"""The asker's end of the channel to a reward service (`wire/channel.py`)."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from itertools import count

import aiohttp
import msgspec

from reward_server.peer import BUSY, CONNECT_TIMEOUT_S, Call, Peer, Reply, retry_after_s, until_answered
from wire.channel import CHANNEL_PATH, LARGEST_ORDER, Answered, Asked

PLAIN_PATH = "/v1/judgement"
FAILURES = frozenset({500, 502, 503, 504})  # 501 and 505 say that there is no WebSocket
# A host that vanished is noticed by the kernel's own questions, which are answered for a program that stands still too,
# as long as its buffers have room. In seconds, seconds, times, and milliseconds. (A WebSocket's pings would cost more.)
TCP_OPTIONS = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 60_000}
CLOSE_TIMEOUT_S = 2.0

log = logging.getLogger(__name__)

_decode = msgspec.json.Decoder(Answered).decode
_encode = msgspec.json.Encoder().encode


class Channel:
    """Judgements over one WebSocket, opened when it is needed and anew after it was lost.

    A service that answers the handshake with a status that denies the route (404, or a proxy's 501) is asked by POST.

    Args:
        session: carries the calls; see `peer.open_session`.
        peer: the service.
    """

    def __init__(self, session: aiohttp.ClientSession, peer: Peer) -> None:
        self._session, self._peer = session, peer
        self._is_plain = False  # no WebSocket is to be had
        self._line: _Line | None = None
        self._opening: asyncio.Task[_Line] | None = None

    async def close(self) -> None:
        """Hang up; what is under way there ends."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._line is not None:
            await self._line.close()

    async def post(self, order: object, call: Call) -> Reply:
        """Ask for a judgement until it is answered; see `peer.until_answered`."""
        return await until_answered(self.send, self._peer.url + PLAIN_PATH, order, call)

    async def send(self, order: bytes) -> Reply:
        """Ask once, whatever the answer. Who is cancelled withdraws it.

        Args:
            order: a JudgementRequest as JSON.

        Raises:
            aiohttp.ClientError, OSError: no answer.
        """
        if self._is_plain or len(order) > LARGEST_ORDER:
            return await self._peer.send("POST", PLAIN_PATH, order)
        try:
            line = await self._open_line()
        except aiohttp.WSServerHandshakeError as refusal:
            status = refusal.status
            if status == 401 or status in BUSY or status in FAILURES:
                return Reply(status, refusal.message.encode(), retry_after_s(refusal.headers or {}))
            reply = await self._peer.send("POST", PLAIN_PATH, order)
            if reply.status == 200 and not self._is_plain:
                log.info("%s%s: HTTP %d; verdicts are asked for one by one", self._peer.url, CHANNEL_PATH, status)
                self._is_plain = True
            return reply
        return await line.ask(order)

    async def _open_line(self) -> _Line:
        """The open line. Whoever needs one while it is being opened waits for the same."""
        if self._line is not None and self._line.is_open:
            return self._line
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._connect())
            self._opening.add_done_callback(_seen)
        return await asyncio.shield(self._opening)

    async def _connect(self) -> _Line:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            web_socket = await self._session.ws_connect(
                self._peer.url + CHANNEL_PATH,
                headers=self._peer.headers,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
                max_msg_size=0,
                decode_text=False,
            )
            _keep_watch(web_socket.get_extra_info("socket"))
        self._line = _Line(web_socket)
        return self._line


class _Line:
    """One open connection, and who waits for answers over it.

    One task writes the frames: in aiohttp all who wait for a full socket wait for one future, and whoever is cancelled
    there cancels it for all.
    """

    def __init__(self, web_socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self._socket = web_socket
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._writing = asyncio.create_task(self._write())
        self._reading = asyncio.create_task(self._read())
        self.is_open = True  # answers may still come
        for task in (self._writing, self._reading):
            task.add_done_callback(_seen)

    async def ask(self, order: bytes) -> Reply:
        """The answer to an order. Raises ConnectionError where the line is lost before."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._outbox.put_nowait(b'{"id":%d,"order":%b}' % (number, order))
        try:
            return await answer
        finally:
            if self._waiting.pop(number, None) is not None and self.is_open:
                self._outbox.put_nowait(_encode(Asked(number)))
            if answer.done() and not answer.cancelled():
                answer.exception()  # marks it as seen, where who asked was cancelled in the same moment

    async def close(self) -> None:
        """Hang up."""
        await self._hang_up(aiohttp.WSCloseCode.OK)
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _hang_up(self, code: int) -> None:
        """Within twice `CLOSE_TIMEOUT_S`: who reads no more takes no farewell either."""
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * CLOSE_TIMEOUT_S):
                await self._socket.close(code=code)

    async def _write(self) -> None:
        while True:  # a socket that takes no more is a lost line, which the reading notices
            await self._socket.send_frame(await self._outbox.get(), aiohttp.WSMsgType.TEXT)

    async def _read(self) -> None:
        problem, code = "the connection was cut", aiohttp.WSCloseCode.OK
        try:
            while (message := await self._socket.receive()).type is aiohttp.WSMsgType.TEXT:
                answer = _decode(message.data)
                waiting = self._waiting.pop(answer.id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(Reply(answer.status, bytes(answer.body), answer.retry_after_s))
            if message.type is aiohttp.WSMsgType.CLOSE:
                problem = f"it hung up, {message.data} {message.extra}".rstrip()
            elif message.type is aiohttp.WSMsgType.ERROR:
                problem = str(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                raise ValueError("it is binary")
        except (ValueError, RecursionError) as error:  # msgspec's among them
            problem, code = f"it sent what is no frame of the channel's: {error}", aiohttp.WSCloseCode.UNSUPPORTED_DATA
        finally:
            self.is_open = False
            self._writing.cancel()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError(f"the channel was lost: {problem}"))
            self._waiting.clear()
        await self._hang_up(code)


def _keep_watch(connection: socket.socket) -> None:
    """Have the kernel find out whether the other host is still there, though nothing is said for minutes."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in TCP_OPTIONS.items():
            if hasattr(socket, name):  # Linux has all of them
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _seen(task: asyncio.Task[object]) -> None:
    """Its exception is told to whoever waits for it, and perhaps nobody does any more."""
    if not task.cancelled():
        task.exception()
