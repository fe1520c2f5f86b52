"""One verdict from the GenRM: asked of the pool, read strictly, asked again where that means something.

Judgements are idempotent: one whose key is in flight already is joined, not asked twice. Nothing is kept once a verdict
has been delivered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from reward_server.config import RewardSettings
from reward_server.dialects import Reading, Unreadable, Unwritable, dialect_named
from reward_server.instruments import Instruments
from reward_server.peer import Reply
from reward_server.pool import Pool, PooledCall
from reward_server.seeds import derived_seed, digest
from wire.errors import ServiceError
from wire.judgement import Message, MissingReason, Verdict

RETRY_TEMPERATURE = 0.6  # at temperature 0 a retry would repeat the unreadable text
RENDER_TIMEOUT_S = 30.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0


class _Generation(msgspec.Struct):
    """What we read of vLLM's chat completion; unknown fields are skipped."""

    choices: list[_Choice]
    usage: _Usage


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Prompt(msgspec.Struct):
    prompt: str


@dataclass
class _Inquiry(PooledCall):
    """What a verdict has cost so far, all attempts together, and the last output."""

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    neutralised: int = 0

    def add(self, reply: Reply) -> str | None:
        """Note a generation; returns its finish reason, None where the reply is no chat completion."""
        try:
            generation = msgspec.json.decode(reply.body, type=_Generation)
            choice = generation.choices[0]
        except (msgspec.MsgspecError, IndexError):
            self.text = reply.text
            return None
        self.text = choice.message.content or ""
        self.prompt_tokens += generation.usage.prompt_tokens
        self.completion_tokens += generation.usage.completion_tokens
        return choice.finish_reason


@dataclass
class _Joined:
    """A judgement in flight and how many wait for it."""

    work: asyncio.Task[Verdict]
    askers: int = 0


class Judge:
    """Asks a pool of GenRM servers for verdicts.

    Args:
        pool: the servers.
        settings: the judge's name, dialect and limits.
        instruments: count what was asked and what came of it.
    """

    def __init__(self, pool: Pool, settings: RewardSettings, instruments: Instruments) -> None:
        self._pool, self._settings, self._instruments = pool, settings, instruments
        self._dialect = dialect_named(settings.judge_dialect, settings.judge_principle)
        self._identity = (
            settings.judge_model_name_or_path,
            settings.judge_dialect,
            settings.judge_principle,
            settings.judge_temperature,
            settings.judge_max_tokens,
        )
        self._in_flight: dict[str, _Joined] = {}
        self._entering: set[str] = set()

    async def judge(
        self, conversation: Sequence[Message], responses: Sequence[str], seed: int, vote: int = 0
    ) -> Verdict:
        """The verdict on one response, or on two against each other, within `judge_timeout_s` seconds.

        Nothing is raised for a verdict that cannot be had: it carries the reason, and no number. The work is cancelled
        when nobody waits for it any more.
        """
        key = self._key(conversation, responses, seed, vote)
        joined = self._in_flight.get(key)
        if joined is None:
            work = asyncio.create_task(self._judge(conversation, responses, derived_seed(seed, vote), key))
            self._entering.add(key)
            joined = self._in_flight[key] = _Joined(work)
        else:
            self._instruments.joined.inc()
        joined.askers += 1
        try:
            return await asyncio.shield(joined.work)
        finally:
            joined.askers -= 1
            if not joined.askers:  # at once, lest somebody join what is being cancelled
                del self._in_flight[key]
                self._entering.discard(key)
                joined.work.cancel()

    def is_under_way(self, conversation: Sequence[Message], responses: Sequence[str], seed: int, vote: int = 0) -> bool:
        """Whether the same is judged already, and would be joined."""
        return self._key(conversation, responses, seed, vote) in self._in_flight

    @property
    def num_entering(self) -> int:
        """Judgements that were begun and have not asked the pool for a place yet."""
        return len(self._entering)

    def _key(self, conversation: Sequence[Message], responses: Sequence[str], seed: int, vote: int) -> str:
        turns = [(turn.role, turn.content) for turn in conversation]
        return digest(turns, list(responses), self._identity, seed, vote)

    async def _judge(self, conversation: Sequence[Message], responses: Sequence[str], seed: int, key: str) -> Verdict:
        self._entering.discard(key)  # from here to the pool it does not stop
        inquiry, started = _Inquiry(), time.monotonic()
        outcome: Reading | MissingReason
        try:
            asked = self._dialect.messages(conversation, responses)
            inquiry.neutralised = asked.neutralised
            affinity = derived_seed(*(turn.content for turn in conversation))
            async with asyncio.timeout(self._settings.judge_timeout_s):
                outcome = await self._ask(asked.messages, len(responses), seed, affinity, inquiry)
        except Unwritable as error:
            outcome, inquiry.text = "refused", str(error)
        except TimeoutError:
            outcome = "server_lost" if inquiry.lost else "timeout"
        if not isinstance(outcome, Reading):
            log.warning("a verdict is missing (%s): %r", outcome, inquiry.text[-300:])
        verdict = self._verdict(outcome, inquiry, time.monotonic() - started, key)
        self._instruments.note(verdict)
        return verdict

    async def _ask(
        self, messages: Sequence[dict[str, str]], num_responses: int, seed: int, affinity: int, inquiry: _Inquiry
    ) -> Reading | MissingReason:
        for attempt in range(1 + self._settings.judge_retries):
            request = self._request(messages, seed, attempt)
            reply = await self._pool.post("/v1/chat/completions", request, affinity, inquiry)
            if reply.status != 200:
                inquiry.text = reply.text
                return _refusal(reply)
            finish = inquiry.add(reply)
            if finish == "length":
                return "too_long"
            try:
                if finish == "stop":  # any other end leaves a text that was cut
                    return self._dialect.read(inquiry.text, num_responses)
            except Unreadable as error:
                log.info("attempt %d of a verdict cannot be read: %s", attempt + 1, error)
            self._instruments.unreadable.inc()
        return "unreadable"

    def _request(self, messages: Sequence[dict[str, str]], seed: int, attempt: int) -> dict[str, object]:
        settings = self._settings
        return {
            "model": settings.judge_model_name_or_path,
            "messages": messages,
            "max_tokens": settings.judge_max_tokens,
            "temperature": max(settings.judge_temperature, RETRY_TEMPERATURE if attempt else 0.0),
            "seed": derived_seed("retry", seed, attempt) if attempt else seed,
            # Where a tokenizer holds </think> for a special token, the default would hide where the reasoning ends.
            "skip_special_tokens": False,
        }

    def _verdict(self, outcome: Reading | MissingReason, inquiry: _Inquiry, seconds: float, key: str) -> Verdict:
        reading = outcome if isinstance(outcome, Reading) else None
        return Verdict(
            scores=reading.scores if reading else None,
            ranking=reading.ranking if reading else None,
            missing=None if isinstance(outcome, Reading) else outcome,
            text=inquiry.text,
            attempts=inquiry.attempts,
            prompt_tokens=inquiry.prompt_tokens,
            completion_tokens=inquiry.completion_tokens,
            seconds=seconds,
            server=inquiry.server,
            key=key,
            neutralised=inquiry.neutralised,
        )

    async def render(self, conversation: Sequence[Message], responses: Sequence[str]) -> str:
        """The prompt as the served model reads it, through its own chat template.

        Raises:
            ServiceError: the dialect has no form for the conversation, or the template fails on it; the message says.
            TimeoutError: no server answered within `RENDER_TIMEOUT_S` seconds.
        """
        try:
            messages = self._dialect.messages(conversation, responses).messages
        except Unwritable as error:
            raise ServiceError(str(error)) from error
        model = self._settings.judge_model_name_or_path
        tokens = await self._call("/tokenize", {"model": model, "messages": messages}, _Tokens)
        return (await self._call("/detokenize", {"model": model, "tokens": tokens.tokens}, _Prompt)).prompt

    async def _call(self, path: str, message: object, answer: type[T]) -> T:
        async with asyncio.timeout(RENDER_TIMEOUT_S):
            reply = await self._pool.post(path, message, 0, PooledCall())
        if reply.status != 200:
            raise ServiceError(f"the GenRM server answers {path} with HTTP {reply.status}: {reply.text[:500]}")
        return msgspec.json.decode(reply.body, type=answer)


def _refusal(reply: Reply) -> MissingReason:
    """Why there is no generation. vLLM gives a too long prompt no code of its own: only its message tells."""
    if reply.is_failure:
        return "server_lost"
    return "too_long" if reply.status == 413 or "context length" in reply.text else "refused"
