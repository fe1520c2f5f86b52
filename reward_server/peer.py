"""HTTP calls to one server that asks for the token."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from wire.token import auth_headers

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
CONNECT_TIMEOUT_S = 10.0
# uvicorn closes a connection that was idle for 5 s; one that is let go earlier is never caught in the act of closing.
KEEPALIVE_S = 3.0
BUSY = frozenset({408, 429})

log = logging.getLogger(__name__)


def open_session() -> aiohttp.ClientSession:
    """A session without limits of its own: deadlines and the number of calls in flight belong to the callers."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


@dataclass
class Call:
    """What is known of a call when its deadline strikes: how often it was sent, and whether the peer was lost.

    A subclass that has more to do at each turn of the call overrides what it is told by.
    """

    attempts: int = 0
    lost: bool = False

    def is_sent(self) -> None:
        """It is sent, once more perhaps."""
        self.attempts += 1

    def is_refused(self) -> None:
        """The peer is busy, and the call will be sent again."""
        self.lost = False

    def is_lost(self) -> None:
        """The peer did not answer, or could not, and the call will be sent again."""
        self.lost = True

    def is_answered(self) -> None:
        """The peer answered, and that is the end of it."""
        self.lost = False


@dataclass(frozen=True)
class Reply:
    """An HTTP answer: its status, its body, and the seconds after which a busy peer wants to be asked again."""

    status: int
    body: bytes
    retry_after_s: float = 0.0

    @property
    def text(self) -> str:
        """The body as text, for messages."""
        return self.body.decode(errors="replace")

    @property
    def is_failure(self) -> bool:
        """Whether the server could not answer: a 5xx."""
        return self.status >= 500

    @property
    def is_busy(self) -> bool:
        """Whether the server wants to be asked later."""
        return self.status in BUSY


def busy_pause(reply: Reply) -> float:
    """Seconds until a busy peer is asked again: what it wants, and a random part more, lest all come back at once."""
    return min(max(reply.retry_after_s, FIRST_PAUSE_S), LONGEST_PAUSE_S) * random.uniform(1.0, 1.5)


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that a header `Retry-After` names; 0 where there is none, or a date."""
    wanted = headers.get("Retry-After", "")
    return float(wanted) if wanted.isdecimal() else 0.0


async def until_answered(send: Callable[[bytes], Awaitable[Reply]], where: str, message: Any, call: Call) -> Reply:
    """Send `message` as JSON until it is answered; without end, so the caller sets the deadline.

    A lost connection and a 5xx are tried again after a pause that doubles, a busy peer (408, 429) after the pause that
    it asks for.

    Args:
        send: one attempt; raises aiohttp.ClientError or OSError where there is no answer.
        where: URL of the route, for the log.
        message: what is sent, or a function that gives what each attempt sends.
        call: is told of every turn.
    """
    pause = FIRST_PAUSE_S
    message_of = message if callable(message) else lambda: message
    while True:
        call.is_sent()
        body = msgspec.json.encode(message_of())
        try:
            reply = await send(body)
        except (aiohttp.ClientError, OSError) as error:
            log.warning("%s: %s", where, error or type(error).__name__)
            call.is_lost()
        else:
            if not (reply.is_failure or reply.is_busy):
                call.is_answered()
                return reply
            level = logging.INFO if reply.is_busy else logging.WARNING
            log.log(level, "%s: HTTP %d %s", where, reply.status, reply.text[:300])
            if reply.is_busy:
                call.is_refused()
                await asyncio.sleep(busy_pause(reply))
                continue
            call.is_lost()
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


class Peer:
    """A server at `url`.

    Args:
        session: carries the calls; see `open_session`.
        url: `http://host:port`.
        token: the run's access token.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self.headers = auth_headers(token)
        self._json_headers = self.headers | {"Content-Type": "application/json"}

    async def post(self, path: str, message: Any, call: Call) -> Reply:
        """POST `message` as JSON until the peer answers; see `until_answered`."""
        return await until_answered(lambda body: self.send("POST", path, body), self.url + path, message, call)

    async def send(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """One request, whatever the status of its answer.

        Raises:
            aiohttp.ClientError, OSError: no answer.
        """
        async with self._session.request(method, self.url + path, data=body, headers=self._json_headers) as answer:
            return Reply(answer.status, await answer.read(), retry_after_s(answer.headers))

    async def get(self, path: str, timeout_s: float) -> Reply:
        """GET once, whatever the status.

        Raises:
            aiohttp.ClientError, OSError: no answer, or none within `timeout_s` seconds (TimeoutError, an OSError).
        """
        async with asyncio.timeout(timeout_s):
            return await self.send("GET", path)
