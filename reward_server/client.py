"""The trainer's way to the reward service. Torch-free."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
from pydantic import ValidationError

from reward_server.aggregate import TIE_BREAK
from reward_server.group import judge_group
from reward_server.peer import Call, Peer, Reply, open_session
from wire.errors import ServiceError, Unauthorized
from wire.judgement import GroupVerdict, JudgementRequest, Message, MissingReason, Verdict

CHECK_TIMEOUT_S = 10.0

log = logging.getLogger(__name__)


class RewardClient:
    """Asks a reward service for verdicts; an asynchronous context manager.

    Args:
        url: the service's `http://host:port`.
        token: the run's access token.
        timeout_s: deadline of one verdict. Longer than the service's own `judge_timeout_s`, so that the service can
            still say why a verdict is missing.
        max_connections: verdicts asked for at once; more wait here, and their deadlines run.
        tie_break: points a ranking step is worth where two scores are equal.
    """

    def __init__(
        self, url: str, token: str, timeout_s: float, max_connections: int = 256, tie_break: float = TIE_BREAK
    ) -> None:
        self.url = url.rstrip("/")
        self._token, self._timeout_s, self._max_connections = token, timeout_s, max_connections
        self._tie_break = tie_break
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = open_session()
        self._peer = Peer(self._session, self.url, self._token, self._max_connections)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def judge(self, conversation: Sequence[Message], responses: Sequence[str], seed: int) -> Verdict:
        """The verdict on one response, or on two against each other.

        A lost connection is retried until the deadline. A verdict that cannot be had carries the reason.

        Raises:
            Unauthorized: the service refuses the token.
        """
        order = JudgementRequest(conversation=tuple(conversation), responses=tuple(responses), seed=seed)
        call, started = Call(), time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._peer.post("/v1/judgement", order.model_dump(mode="json"), call)
        except TimeoutError:
            reason: MissingReason = "server_lost" if call.lost else "timeout"
            return self._missing(reason, "", call, time.monotonic() - started)
        self._check_token(reply)
        return _verdict_in(reply, len(responses)) or self._missing(
            "refused", reply.text, call, time.monotonic() - started
        )

    async def ring(
        self, conversation: Sequence[Message], completions: Sequence[Awaitable[str | None]], seed: int
    ) -> GroupVerdict:
        """The scores of K completions, each pair asked about as soon as both are there; see `group.judge_group`.

        Raises:
            Unauthorized: the service refuses the token.
            Whatever a completion raises.
        """

        async def judge_pair(first: str, second: str | None, pair_seed: int) -> Verdict:
            return await self.judge(conversation, (first,) if second is None else (first, second), pair_seed)

        return await judge_group(judge_pair, completions, seed, self._tie_break)

    async def check(self) -> dict[str, Any]:
        """Who judges there, and within which limits.

        Raises:
            Unauthorized: the service refuses the token.
            ServiceError: nobody answers, or somebody who is no reward service.
        """
        try:
            reply = await self._peer.get("/v1/info", min(self._timeout_s, CHECK_TIMEOUT_S))
        except (aiohttp.ClientError, OSError) as error:
            raise ServiceError(f"no reward service answers at {self.url}: {error or type(error).__name__}") from error
        self._check_token(reply)
        try:
            info = json.loads(reply.body) if reply.status == 200 else None
        except ValueError:
            info = None
        if not isinstance(info, dict) or "dialect" not in info:
            raise ServiceError(f"{self.url} is no reward service: HTTP {reply.status} {reply.text[:200]}")
        return info

    def _check_token(self, reply: Reply) -> None:
        if reply.status == 401:
            raise Unauthorized(f"{self.url} refuses the token: give both sides the same token_file")

    def _missing(self, reason: MissingReason, text: str, call: Call, seconds: float) -> Verdict:
        log.warning("a verdict of %s is missing (%s): %r", self.url, reason, text[:300])
        return Verdict(missing=reason, text=text, attempts=call.attempts, seconds=seconds, server=self.url)


def _verdict_in(reply: Reply, num_responses: int) -> Verdict | None:
    """The verdict in the reply; None where there is none, or one with another number of scores."""
    if reply.status != 200:
        return None
    try:
        verdict = Verdict.model_validate_json(reply.body)
    except ValidationError:
        return None
    num_scores = num_responses if verdict.missing else len(verdict.scores or ())
    return verdict if num_scores == num_responses else None
