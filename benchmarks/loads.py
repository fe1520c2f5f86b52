"""What the judge is asked, and the two ways to ask it: through the reward service, and straight.

    ask_service     RewardClient -> reward service -> GenRM servers
    ask_straight    a bare HTTP client             -> the same GenRM servers, in turn

Both give the GenRM servers the very same requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from random import Random

import aiohttp
import msgspec

from deploy.toy.answers import any_answer, good_answer
from deploy.toy.prompts import PHRASINGS, ask, conversation_about
from deploy.toy.world import TOPICS
from reward_server.client import RewardClient
from reward_server.config import RewardSettings
from reward_server.dialects.boxed import Boxed
from reward_server.peer import KEEPALIVE_S
from reward_server.seeds import derived_seed
from wire.errors import ServiceError
from wire.judgement import Message
from wire.token import auth_headers

CALL_DEADLINE_S = 120.0


@dataclass(frozen=True)
class Question:
    """One judgement to ask for, and the chat messages that the service makes of it for the toy judge."""

    conversation: tuple[Message, ...]
    responses: tuple[str, str]
    messages: list[dict[str, str]]
    seed: int

    @classmethod
    def of(cls, conversation: tuple[Message, ...], responses: tuple[str, str], seed: int) -> Question:
        """The messages are made here, before any clock runs: making them is the service's work, not a bare client's."""
        return cls(conversation, responses, Boxed().messages(conversation, responses).messages, seed)

    @property
    def genrm_seed(self) -> int:
        """The seed of the one generation, as the service derives it."""
        return derived_seed(self.seed, 0)


@dataclass(frozen=True)
class Answer:
    """What came back: whether a verdict, and of how many tokens."""

    given: bool
    num_tokens: int


Ask = Callable[[Question], Awaitable[Answer]]


# --- questions


def toy_question(seed: int) -> Question:
    """A short question of the toy world, well below one block of the prefix cache."""
    rng = Random(seed)
    topic = rng.choice(list(TOPICS))
    turns = conversation_about(rng, ask(rng, "train", topic), preambles=False)
    return Question.of(_messages(turns), (any_answer(rng, topic), any_answer(rng, topic)), seed)


def long_conversation(rng: Random, num_turns: int, num_words: int) -> tuple[Message, ...]:
    """`num_turns` questions, the answers between them of `num_words` words each."""
    turns: list[dict[str, str]] = []
    for i in range(num_turns):
        topic = rng.choice(list(TOPICS))
        turns.append({"role": "user", "content": rng.choice(PHRASINGS["train"]).format(topic=topic)})
        if i + 1 < num_turns:
            words = " ".join(good_answer(rng, topic) for _ in range(num_words))
            turns.append({"role": "assistant", "content": " ".join(words.split()[:num_words])})
    return _messages(turns)


def full_question(seed: int) -> Question:
    """A question of a real run's size: about 6 KB of conversation, two answers of about 4 KB."""
    rng = Random(seed)
    long_answer = " ".join(good_answer(rng, "sea") for _ in range(90))
    return Question.of(long_conversation(rng, 5, 240), (f"first {long_answer}", f"second {long_answer}"), seed)


def _messages(turns: Iterable[object]) -> tuple[Message, ...]:
    return tuple(Message.model_validate(turn) for turn in turns)


# --- the two ways


def ask_service(client: RewardClient) -> Ask:
    """Through the reward service."""

    async def ask(question: Question) -> Answer:
        verdict = await client.judge(question.conversation, question.responses, question.seed)
        return Answer(verdict.missing is None, verdict.completion_tokens)

    return ask


class _Content(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Content
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage


def straight_session() -> aiohttp.ClientSession:
    """A session that does as little as it can: keep-alive, no limits, no cookies."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def chat_request(settings: RewardSettings, question: Question) -> dict[str, object]:
    """The body that the service sends for the first attempt of a verdict."""
    return {
        "model": settings.judge_model_name_or_path,
        "messages": question.messages,
        "max_tokens": settings.judge_max_tokens,
        "temperature": settings.judge_temperature,
        "seed": question.genrm_seed,
        "skip_special_tokens": False,
    }


def ask_straight(session: aiohttp.ClientSession, urls: Sequence[str], token: str, settings: RewardSettings) -> Ask:
    """Straight to the GenRM servers, one after the other; no retries, no reading of the verdict."""
    routes: Iterator[str] = cycle([f"{url}/v1/chat/completions" for url in urls])
    headers = auth_headers(token) | {"Content-Type": "application/json"}
    decoder = msgspec.json.Decoder(_Completion)

    async def ask(question: Question) -> Answer:
        body = msgspec.json.encode(chat_request(settings, question))
        route = next(routes)
        try:
            async with asyncio.timeout(CALL_DEADLINE_S), session.post(route, data=body, headers=headers) as reply:
                content = await reply.read()
        except (aiohttp.ClientError, OSError) as error:
            raise ServiceError(f"{route} did not answer: {error or type(error).__name__}") from error
        if reply.status != 200:
            raise ServiceError(f"{route} answers with HTTP {reply.status}: {content[:200]!r}")
        completion = decoder.decode(content)
        return Answer(completion.choices[0].finish_reason == "stop", completion.usage.completion_tokens)

    return ask


# --- the load


@dataclass(frozen=True)
class Sample:
    """One question of a closed loop with its answer; when each went, in seconds from the start."""

    question: Question
    answer: Answer
    sent: float
    answered: float


async def closed_loop(
    ask: Ask, questions_of: Callable[[int], Iterator[Question]], in_flight: int, ramp_s: float, window_s: float
) -> list[Sample]:
    """Keep `in_flight` questions with the judge until `ramp_s + window_s` seconds have passed, and await the last.

    Worker i asks `questions_of(i)`, one after the other, and begins after i / in_flight of the ramp: begun all at once,
    the load would be a burst that no training run makes. Nothing is cancelled, for a turn that ends in a thousand
    hang-ups leaves its remains to the next.

    Raises: what `ask` raises; the other questions are then given up.
    """
    samples: list[Sample] = []
    clock = asyncio.get_running_loop().time
    began = clock()

    async def work(worker: int) -> None:
        await asyncio.sleep(ramp_s * worker / in_flight)
        for question in questions_of(worker):
            sent = clock() - began
            if sent >= ramp_s + window_s:
                return
            answer = await ask(question)
            samples.append(Sample(question, answer, sent, clock() - began))

    workers = [asyncio.create_task(work(worker)) for worker in range(in_flight)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return samples
