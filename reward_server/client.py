"""The trainer's way to the reward service. Torch-free."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp
import msgspec
from pydantic import ValidationError

from reward_server.asking import Asking
from reward_server.channel import Channel
from reward_server.config import RewardSettings
from reward_server.group import judge_group
from reward_server.peer import Call, Peer, Reply, open_session
from reward_server.scheme import Scheme
from wire.errors import ServiceError, Unauthorized
from wire.judgement import GroupVerdict, JudgementRequest, Message, MissingReason, Verdict
from wire.waits import waiting

CHECK_TIMEOUT_S = 10.0
RENDER_TIMEOUT_S = 60.0
HAS_NO_PLACE = "has no free place"
DEFAULT_SCHEME = Scheme.of(RewardSettings())

log = logging.getLogger(__name__)


class VerdictMemory(Protocol):
    """The verdicts of one group that were given before. A pair's seed names it: both answers are hashed into it."""

    def recall(self, seed: int, vote: int) -> Verdict | None:
        """The verdict on the pair, if it is known."""

    def note(self, seed: int, vote: int, verdict: Verdict) -> None:
        """A verdict was given, or is missing for the reason that it carries."""


class RewardClient:
    """Asks a reward service for verdicts; an asynchronous context manager.

    Args:
        url: the service's `http://host:port`.
        token: the run's access token.
        timeout_s: deadline of one verdict. Longer than the service's own `judge_timeout_s`, so that the service can
            still say why a verdict is missing. While the service says that its queue is full, the deadline runs from
            the last verdict that it gave this client: a full queue that moves loses nothing.
        most_at_once: verdicts asked for at once; more wait here, and their deadlines do not run yet.
        scheme: how `group` pairs and scores completions.
    """

    def __init__(
        self, url: str, token: str, timeout_s: float, most_at_once: int = 2048, scheme: Scheme = DEFAULT_SCHEME
    ) -> None:
        self.url = url.rstrip("/")
        self._token, self._timeout_s, self._scheme = token, timeout_s, scheme
        self._places = asyncio.Semaphore(most_at_once)
        self._last_answer = 0.0  # of the loop's clock
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = open_session()
        self._peer = Peer(self._session, self.url, self._token)
        self._channel = Channel(self._session, self._peer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        try:
            await self._channel.close()
        finally:
            await self._session.close()

    async def judge(
        self,
        conversation: Sequence[Message],
        responses: Sequence[str],
        seed: int,
        vote: int = 0,
        *,
        background: asyncio.Event | None = None,
    ) -> Verdict:
        """The verdict on one response, or on two against each other; one of the `background` is let in when nothing
        else waits, or once the event is set.

        A lost connection is retried until the deadline. A verdict that cannot be had carries the reason.

        Raises:
            Unauthorized: the service refuses the token.
        """
        order = JudgementRequest(conversation=tuple(conversation), responses=tuple(responses), seed=seed, vote=vote)
        await self._take_place()
        try:
            return await self._ask(order, background)
        finally:
            self._places.release()

    async def _ask(self, order: JudgementRequest, background: asyncio.Event | None) -> Verdict:
        def body() -> msgspec.Raw:  # of each attempt: it may be of the background no more
            gives_way = background is not None and not background.is_set()
            return _as_json(order.model_copy(update={"background": True}) if gives_way else order)

        clock = asyncio.get_running_loop().time
        started = clock()
        with Asking(url=self.url) as call:
            try:
                async with asyncio.timeout(self._timeout_s) as deadline:
                    call.on_busy = lambda: deadline.reschedule(
                        max(deadline.when() or 0.0, self._last_answer + self._timeout_s)
                    )
                    reply = await self._channel.post(body, call)
            except TimeoutError:
                reason: MissingReason = "server_lost" if call.lost else "timeout"
                return self._missing(reason, "", call, clock() - started)
            self._last_answer = clock()
            self._check_token(reply)
            verdict = _verdict_in(reply, len(order.responses))
            if verdict is None:
                return self._missing("refused", reply.text, call, clock() - started)
            call.was_done_by(verdict.server)
            return verdict

    async def _take_place(self) -> None:
        """One of the verdicts that may be asked for at once; to be released."""
        if self._places.locked():
            with waiting(f"judge {self.url}", HAS_NO_PLACE):
                await self._places.acquire()
        else:
            await self._places.acquire()  # at once

    async def group(
        self,
        conversation: Sequence[Message],
        completions: Sequence[Awaitable[str | None]],
        seed: int,
        memory: VerdictMemory | None = None,
    ) -> GroupVerdict:
        """The scores of K completions, each pair asked about as soon as both are there; see `group.judge_group`.

        What `memory` recalls is not asked again, and it is told of every verdict that is given.

        Raises:
            Unauthorized: the service refuses the token.
            Whatever a completion raises.
        """

        async def judge_pair(first: str, second: str | None, pair_seed: int, vote: int) -> Verdict:
            verdict = memory.recall(pair_seed, vote) if memory is not None else None
            if verdict is None:
                responses = (first,) if second is None else (first, second)
                verdict = await self.judge(conversation, responses, pair_seed, vote)
                if memory is not None:
                    memory.note(pair_seed, vote, verdict)
            return verdict

        return await judge_group(judge_pair, completions, seed, self._scheme)

    async def render(self, conversation: Sequence[Message], responses: Sequence[str]) -> str:
        """The prompt that the judge reads, through its own chat template.

        Raises:
            ServiceError: the template or the dialect has no form for it, or the service does not answer.
        """
        order = JudgementRequest(conversation=tuple(conversation), responses=tuple(responses))
        try:
            async with asyncio.timeout(RENDER_TIMEOUT_S):
                reply = await self._peer.post("/v1/render", _as_json(order), Call())
        except TimeoutError:
            raise ServiceError(f"{self.url} did not render a prompt within {RENDER_TIMEOUT_S:.0f} s") from None
        self._check_token(reply)
        if reply.status != 200:
            raise ServiceError(f"{self.url} cannot render a prompt: HTTP {reply.status} {reply.text[:600]}")
        return str(json.loads(reply.body)["prompt"])

    async def info(self) -> dict[str, Any]:
        """Who judges there, within which limits, and how the pool stands.

        Raises:
            Unauthorized: the service refuses the token.
            ServiceError: nobody answers, or somebody who is no reward service.
        """
        return await self.call("GET", "/v1/info")

    async def call(self, method: str, path: str, message: Any = None) -> dict[str, Any]:
        """One request to the service, such as those of `reward_server.scale`; no retry.

        Raises:
            Unauthorized: the service refuses the token.
            ServiceError: nobody answers, or the answer is no JSON object of status 200.
        """
        body = None if message is None else json.dumps(message).encode()
        try:
            async with asyncio.timeout(min(self._timeout_s, CHECK_TIMEOUT_S)):
                reply = await self._peer.send(method, path, body)
        except (aiohttp.ClientError, OSError) as error:
            raise ServiceError(f"no reward service answers at {self.url}: {error or type(error).__name__}") from error
        self._check_token(reply)
        try:
            answer = json.loads(reply.body) if reply.status == 200 else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServiceError(
                f"{self.url} does not answer {path} as a reward service does: HTTP {reply.status} {reply.text[:200]}"
            )
        return answer

    def _check_token(self, reply: Reply) -> None:
        if reply.status == 401:
            raise Unauthorized(f"{self.url} refuses the token: give both sides the same token_file")

    def _missing(self, reason: MissingReason, text: str, call: Call, seconds: float) -> Verdict:
        log.warning("a verdict of %s is missing (%s): %r", self.url, reason, text[:300])
        return Verdict(missing=reason, text=text, attempts=call.attempts, seconds=seconds, server=self.url)


def _as_json(order: JudgementRequest) -> msgspec.Raw:
    """Ready to be sent: Pydantic writes it faster than it makes a dictionary of it."""
    return msgspec.Raw(order.model_dump_json().encode())


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
