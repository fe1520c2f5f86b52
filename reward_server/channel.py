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
# A host that vanished is noticed by the kernel's own questions, which a program that stands still answers too: it keeps
# what it is asked. In seconds, seconds, times, and milliseconds. (Pings of the WebSocket cost more than a frame.)
TCP_OPTIONS = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 60_000}
CLOSE_TIMEOUT_S = 2.0

log = logging.getLogger(__name__)

_decode = msgspec.json.Decoder(Answered).decode
_encode = msgspec.json.Encoder().encode


class Channel:
    """Judgements over one WebSocket, opened when it is needed and anew after it was lost.

    A service that has no such route, or stands behind a proxy that lets no WebSocket pass, is asked by POST.

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
            if status == 401 or status in BUSY or status >= 500:
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
    """One open connection, and who waits for answers over it."""

    def __init__(self, web_socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self._socket = web_socket
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._withdrawals: set[asyncio.Task[None]] = set()
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(_seen)

    @property
    def is_open(self) -> bool:
        """Whether answers may still come."""
        return not self._reading.done()

    async def ask(self, order: bytes) -> Reply:
        """The answer to an order. Raises aiohttp.ClientError or ConnectionError where the line is lost before."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send_frame(b'{"id":%d,"order":%b}' % (number, order), aiohttp.WSMsgType.TEXT)
            return await answer
        finally:
            if self._waiting.pop(number, None) is not None and self.is_open:
                withdrawal = asyncio.create_task(self._withdraw(number))
                self._withdrawals.add(withdrawal)
                withdrawal.add_done_callback(self._withdrawals.discard)

    async def close(self) -> None:
        """Hang up, within twice `CLOSE_TIMEOUT_S`: who reads no more takes no farewell either."""
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * CLOSE_TIMEOUT_S):
                await self._socket.close()
        tasks = [*self._withdrawals, self._reading]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _withdraw(self, number: int) -> None:
        with suppress(aiohttp.ClientError, OSError):  # a lost line withdraws all that was asked over it
            await self._socket.send_frame(_encode(Asked(number)), aiohttp.WSMsgType.TEXT)

    async def _read(self) -> None:
        problem = "the connection was cut"
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
        except msgspec.MsgspecError as error:
            problem = f"no frame of the channel's: {error}"
            await self._socket.close(code=aiohttp.WSCloseCode.UNSUPPORTED_DATA)
        finally:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError(f"the channel was lost: {problem}"))
            self._waiting.clear()


def _keep_watch(connection: socket.socket) -> None:
    """Have the kernel find out whether the other host is still there, though nothing is said for minutes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in TCP_OPTIONS.items():
        if hasattr(socket, name):  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _seen(task: asyncio.Task[object]) -> None:
    """Its exception is told to whoever waits for it, and perhaps nobody does any more."""
    if not task.cancelled():
        task.exception()
