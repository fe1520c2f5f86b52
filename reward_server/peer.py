"""One HTTP server that asks for the token, and calls to it that outlive a lost connection."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import aiohttp

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
    )


@dataclass
class Call:
    """What is known of a call when its deadline strikes: how often it was sent, and whether the peer was lost."""

    attempts: int = 0
    lost: bool = False


@dataclass(frozen=True)
class Reply:
    """An HTTP answer: its status below 500, and its body."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The body as text, for messages."""
        return self.body.decode(errors="replace")


class Peer:
    """A server at `url`.

    Args:
        session: carries the calls; see `open_session`.
        url: `http://host:port`.
        token: the run's access token.
        max_in_flight: calls sent at once; more wait here.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str, max_in_flight: int) -> None:
        self.url = url.rstrip("/")
        self._session, self._headers = session, auth_headers(token)
        self._places = asyncio.Semaphore(max_in_flight)

    async def post(self, path: str, message: Any, call: Call) -> Reply:
        """POST `message` as JSON until the peer answers; without end, so the caller sets the deadline.

        A lost connection, a 5xx and a busy peer (408, 429) are tried again after a pause that doubles. The place in
        flight is given back during the pause.
        """
        pause = FIRST_PAUSE_S
        while True:
            async with self._places:
                call.attempts += 1
                reply = await self._try_post(path, message)
            call.lost = reply is None
            if reply is not None:
                return reply
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _try_post(self, path: str, message: Any) -> Reply | None:
        try:
            async with self._session.post(self.url + path, json=message, headers=self._headers) as answer:
                reply = Reply(answer.status, await answer.read())
        except (aiohttp.ClientError, OSError) as error:
            log.warning("%s%s: %s", self.url, path, error or type(error).__name__)
            return None
        if reply.status >= 500 or reply.status in BUSY:
            log.warning("%s%s: HTTP %d %s", self.url, path, reply.status, reply.text[:300])
            return None
        return reply

    async def get(self, path: str, timeout_s: float) -> Reply:
        """GET once, whatever the status.

        Raises:
            aiohttp.ClientError, OSError: no answer, or none within `timeout_s` seconds (TimeoutError, an OSError).
        """
        async with asyncio.timeout(timeout_s), self._session.get(self.url + path, headers=self._headers) as answer:
            return Reply(answer.status, await answer.read())
