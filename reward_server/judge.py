"""One verdict from the GenRM: asked of a stock vLLM server, read strictly, asked again where that means something."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from reward_server.config import RewardSettings
from reward_server.dialects import Reading, Unreadable, Unwritable, dialect_named
from reward_server.peer import Call, Peer, Reply
from reward_server.seeds import derived_seed
from wire.judgement import Message, MissingReason, Verdict

RETRY_TEMPERATURE = 0.6  # at temperature 0 a retry would repeat the unreadable text
HEALTH_TIMEOUT_S = 2.0

log = logging.getLogger(__name__)


@dataclass
class _Inquiry(Call):
    """What a verdict has cost so far, all attempts together, and the last output."""

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, reply: Reply) -> str | None:
        """Note a generation; returns its finish reason, None where the reply is no chat completion."""
        try:
            content = json.loads(reply.body)
            choice, usage = content["choices"][0], content["usage"]
            self.text = choice["message"]["content"] or ""
            self.prompt_tokens += usage["prompt_tokens"]
            self.completion_tokens += usage["completion_tokens"]
            return str(choice["finish_reason"])
        except (ValueError, LookupError, TypeError):
            self.text = reply.text
            return None


class Judge:
    """Asks one GenRM server for verdicts.

    Args:
        session: carries the calls; see `peer.open_session`.
        url: the server's `http://host:port`.
        token: the run's access token.
        settings: the judge's name, dialect and limits.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str, settings: RewardSettings) -> None:
        self._settings = settings
        self._dialect = dialect_named(settings.judge_dialect)
        self._peer = Peer(session, url, token, settings.judge_max_in_flight)

    async def judge(self, conversation: Sequence[Message], responses: Sequence[str], seed: int) -> Verdict:
        """The verdict on one response, or on two against each other, within `judge_timeout_s` seconds.

        Nothing is raised for a verdict that cannot be had: it carries the reason, and no number.
        """
        inquiry, started = _Inquiry(), time.monotonic()
        outcome: Reading | MissingReason
        try:
            asked = self._dialect.messages(conversation, responses)
            async with asyncio.timeout(self._settings.judge_timeout_s):
                outcome = await self._ask(asked.messages, len(responses), seed, inquiry)
        except Unwritable as error:
            outcome, inquiry.text = "refused", str(error)
        except TimeoutError:
            outcome = "server_lost" if inquiry.lost else "timeout"
        if not isinstance(outcome, Reading):
            log.warning("a verdict is missing (%s): %r", outcome, inquiry.text[-300:])
        return self._verdict(outcome, inquiry, time.monotonic() - started)

    async def is_healthy(self) -> bool:
        """Whether the GenRM answers."""
        try:
            return (await self._peer.get("/health", HEALTH_TIMEOUT_S)).status == 200
        except (aiohttp.ClientError, OSError):
            return False

    async def _ask(
        self, messages: list[dict[str, str]], num_responses: int, seed: int, inquiry: _Inquiry
    ) -> Reading | MissingReason:
        for attempt in range(1 + self._settings.judge_retries):
            reply = await self._peer.post("/v1/chat/completions", self._request(messages, seed, attempt), inquiry)
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
        return "unreadable"

    def _request(self, messages: list[dict[str, str]], seed: int, attempt: int) -> dict[str, Any]:
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

    def _verdict(self, outcome: Reading | MissingReason, inquiry: _Inquiry, seconds: float) -> Verdict:
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
            server=self._peer.url,
        )


def _refusal(reply: Reply) -> MissingReason:
    """Why the server answered 4xx. vLLM gives a too long prompt no code of its own: only its message tells."""
    return "too_long" if reply.status == 413 or "context length" in reply.text else "refused"
