"""The judge against a small server that speaks vLLM's chat route."""

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from socket import SHUT_RDWR

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from reward_server.app import build_app
from reward_server.client import RewardClient
from reward_server.config import RewardSettings
from reward_server.instruments import Instruments
from reward_server.judge import RETRY_TEMPERATURE, Judge
from reward_server.peer import open_session
from reward_server.pool import MAX_DEATHS, Pool
from reward_server.seeds import derived_seed
from tests.serving import running_app
from wire.judgement import Message

CONVERSATION = (Message(role="user", content="sea?"),)
SCORES = "[The Begin of Individual Scores]\\boxed{4, 2}[The End of Individual Scores]"
GOOD = f"<think>hm</think>{SCORES}[The Begin of Ranking Score]\\boxed{{2}}[The End of Ranking Score]"
TOO_LONG = {"error": {"message": "This model's maximum context length is 40000 tokens. However, ...", "code": 400}}


def generation(text, finish="stop"):
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return 200, {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


@dataclass
class FakeGenRM:
    """Answers with `script`, one entry a request, the last one for ever; `hang` is an answer that never comes."""

    script: list
    pause_s: float = 0.01
    requests: list = field(default_factory=list)
    tokens: list = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    hung_up: int = 0  # calls that were given up while they were generated

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        self.tokens.append(request.headers.get("Authorization"))
        entry = self.script[min(len(self.requests), len(self.script)) - 1]
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(3600 if entry == "hang" else self.pause_s)
        except asyncio.CancelledError:
            self.hung_up += 1
            raise
        finally:
            self.in_flight -= 1
        if entry == "disconnect":
            request.transport.close()
            return web.Response()
        status, body = entry
        return web.json_response(body, status=status)

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()


@asynccontextmanager
async def judge_with(*script, pause_s=0.01, **settings):
    fake = FakeGenRM(list(script), pause_s)
    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", fake.chat), web.get("/health", fake.health)])
    server = TestServer(app, handler_cancellation=True)
    async with server, judge_of(lambda: [str(server.make_url(""))], **settings) as judge:
        yield judge, fake


@asynccontextmanager
async def judge_of(urls, **settings):
    """A judge over a pool of the servers that `urls` names when they run."""
    settings = RewardSettings(judge_model_name_or_path="m", **settings)
    async with open_session() as session, Pool(session, "secret", max_in_flight=settings.judge_max_in_flight) as pool:
        for url in urls():
            pool.add(url)
        yield Judge(pool, settings, Instruments(pool))


async def test_a_readable_output_becomes_numbers_with_their_provenance():
    async with judge_with(generation(GOOD)) as (judge, fake):
        verdict = await judge.judge(CONVERSATION, ("a", "b"), seed=7)
    assert (verdict.scores, verdict.ranking, verdict.missing, verdict.text) == ((4, 2), 2, None, GOOD)
    assert (verdict.attempts, verdict.prompt_tokens, verdict.completion_tokens) == (1, 10, 5)
    assert verdict.server.startswith("http://127.0.0.1:") and 0 < verdict.seconds < 5
    (request,) = fake.requests
    assert [message["role"] for message in request["messages"]] == ["user", "response_1", "response_2"]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("m", 0.0, 8192)
    assert request["seed"] == derived_seed(7, 0)
    assert request["skip_special_tokens"] is False
    assert fake.tokens == ["Bearer secret"]


async def test_an_unreadable_output_is_asked_for_again_warmer_and_with_another_seed():
    async with judge_with(generation("no numbers"), generation(None), generation(GOOD)) as (judge, fake):
        verdict = await judge.judge(CONVERSATION, ("a", "b"), seed=7)
    assert verdict.scores == (4, 2) and verdict.attempts == 3
    assert (verdict.prompt_tokens, verdict.completion_tokens) == (30, 15)
    assert [request["temperature"] for request in fake.requests] == [0.0, RETRY_TEMPERATURE, RETRY_TEMPERATURE]
    assert len({request["seed"] for request in fake.requests}) == 3


@pytest.mark.parametrize(
    "reply", [generation("</think>\\boxed{99}"), generation(GOOD, "abort"), (200, {"odd": 1}), (200, [])]
)
async def test_what_stays_unreadable_is_missing_and_has_no_numbers(reply):
    async with judge_with(reply, judge_retries=1) as (judge, fake):
        verdict = await judge.judge(CONVERSATION, ("a", "b"), seed=7)
    assert (verdict.missing, verdict.scores, verdict.ranking) == ("unreadable", None, None)
    assert verdict.attempts == len(fake.requests) == 2


@pytest.mark.parametrize(
    ("reply", "missing"),
    [(generation(GOOD, "length"), "too_long"), ((400, TOO_LONG), "too_long"), ((413, {}), "too_long"),
     ((400, {"error": {"message": "bad role"}}), "refused"), ((401, {}), "refused"), ((404, {}), "refused")],
)  # fmt: skip
async def test_a_refusal_and_an_output_that_was_cut_are_not_asked_for_again(reply, missing):
    async with judge_with(reply) as (judge, fake):
        verdict = await judge.judge(CONVERSATION, ("a", "b"), seed=7)
    assert (verdict.missing, verdict.scores) == (missing, None)
    assert len(fake.requests) == 1


async def test_a_verdict_that_takes_too_long_is_missing_and_its_request_is_hung_up():
    async with judge_with("hang", judge_timeout_s=0.2) as (judge, fake):
        started = time.monotonic()
        verdict = await judge.judge(CONVERSATION, ("a", "b"), seed=7)
        assert (verdict.missing, verdict.scores) == ("timeout", None) and time.monotonic() - started < 2
        while not fake.hung_up:
            await asyncio.sleep(0.01)


async def test_a_server_error_and_a_lost_connection_are_retried():
    async with judge_with((500, {}), "disconnect", (503, {}), (429, {}), generation(GOOD)) as (judge, _):
        verdict = await judge.judge(CONVERSATION, ("a", "b"), seed=7)
    assert verdict.scores == (4, 2) and verdict.attempts == 5


async def test_a_server_that_stays_down_is_lost_when_the_deadline_strikes():
    async with judge_with((500, {}), judge_timeout_s=0.5) as (judge, _):
        verdict = await judge.judge(CONVERSATION, ("a", "b"), seed=7)
    assert (verdict.missing, verdict.scores) == ("server_lost", None) and verdict.attempts > 1


async def test_a_request_that_ends_every_connection_is_given_up_before_its_deadline():
    async with judge_with("disconnect", judge_timeout_s=60) as (judge, fake):
        verdict = await judge.judge(CONVERSATION, ("a", "b"), seed=7)
    assert (verdict.missing, verdict.scores) == ("server_lost", None)
    assert verdict.attempts == len(fake.requests) == MAX_DEATHS


async def test_a_verdict_of_a_pool_where_nobody_listens_waits_for_its_deadline():
    async with judge_of(lambda: [f"http://127.0.0.1:{unused_port()}"], judge_timeout_s=0.3) as judge:
        verdict = await judge.judge(CONVERSATION, ("a",), seed=7)
    assert (verdict.missing, verdict.attempts) == ("timeout", 0)


async def test_equal_judgements_in_flight_are_one_and_an_unequal_vote_is_another():
    async with judge_with(generation(GOOD)) as (judge, fake):
        asked = [judge.judge(CONVERSATION, ("a", "b"), seed=7, vote=vote) for vote in (0, 0, 1, 0)]
        verdicts = await asyncio.gather(*asked)
        assert len(fake.requests) == 2 and len({verdict.key for verdict in verdicts}) == 2
        assert verdicts[0] == verdicts[1] == verdicts[3] != verdicts[2]
        await judge.judge(CONVERSATION, ("a", "b"), seed=7)
    assert len(fake.requests) == 3  # delivered ones are not kept


async def test_a_joined_judgement_goes_on_while_anybody_waits_for_it_and_not_longer():
    async with judge_with("hang") as (judge, fake):
        first, second = (asyncio.create_task(judge.judge(CONVERSATION, ("a", "b"), seed=7)) for _ in range(2))
        while not fake.requests:
            await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert not fake.hung_up
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        while not fake.hung_up:
            await asyncio.sleep(0.01)
    assert len(fake.requests) == 1


async def test_a_judgement_that_is_being_given_up_is_not_joined():
    async with judge_with("hang", generation(GOOD)) as (judge, fake):
        first = asyncio.create_task(judge.judge(CONVERSATION, ("a", "b"), seed=7))
        while not fake.requests:
            await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0)  # it has left; its work has not ended yet
        verdict = await judge.judge(CONVERSATION, ("a", "b"), seed=7)
        await asyncio.gather(first, return_exceptions=True)
    assert verdict.scores == (4, 2) and len(fake.requests) == 2


async def test_no_more_requests_are_in_flight_than_allowed():
    async with judge_with(generation(GOOD), judge_max_in_flight=3) as (judge, fake):
        verdicts = await asyncio.gather(*(judge.judge(CONVERSATION, ("a", "b"), seed=i) for i in range(12)))
    assert all(verdict.scores == (4, 2) for verdict in verdicts) and fake.most_in_flight == 3


async def test_waiting_for_a_place_counts_towards_the_deadline():
    async with judge_with("hang", judge_max_in_flight=1, judge_timeout_s=0.5) as (judge, fake):
        verdicts = await asyncio.gather(*(judge.judge(CONVERSATION, ("a", "b"), seed=i) for i in range(3)))
    assert {verdict.missing for verdict in verdicts} == {"timeout"} and len(fake.requests) == 1


async def test_a_conversation_the_dialect_cannot_write_is_refused_without_a_request():
    async with judge_with(generation(GOOD)) as (judge, fake):
        verdict = await judge.judge((Message(role="response_1", content="x"),), ("a", "b"), seed=7)
    assert verdict.missing == "refused" and not fake.requests and verdict.attempts == 0


@asynccontextmanager
async def asked_over_the_channel(judge):
    app = build_app(judge._settings, judge, judge._pool, None, Instruments(judge._pool), "secret")
    async with running_app(app) as url, RewardClient(url, "secret", timeout_s=20) as client, asyncio.timeout(30):
        while not judge._pool.room:
            await asyncio.sleep(0.01)
        yield client


async def test_verdicts_that_were_asked_for_over_a_connection_that_was_cut_are_generated_once(caplog):
    """Asked for again over a new one, they join what is under way, though the queue is full of themselves."""
    caplog.set_level("INFO")
    settings = {"judge_max_in_flight": 2, "judge_max_queue": 2}
    async with (
        judge_with(generation(GOOD), pause_s=1.0, **settings) as (judge, fake),
        asked_over_the_channel(judge) as client,
    ):
        asking = [asyncio.create_task(client.judge(CONVERSATION, ("a", "b"), seed)) for seed in range(4)]
        while (len(fake.requests), judge._pool.num_waiting) != (2, 2):
            await asyncio.sleep(0.01)
        client._channel._line._socket.get_extra_info("socket").shutdown(SHUT_RDWR)
        verdicts = await asyncio.gather(*asking)
    assert [verdict.scores for verdict in verdicts] == [(4, 2)] * 4
    assert (len(fake.requests), fake.hung_up) == (4, 0)
    assert "the channel was lost" in caplog.text and "HTTP 429" not in caplog.text


@pytest.mark.parametrize("background", [False, True])
async def test_a_burst_fills_the_queue_and_no_more(background):
    settings = {"judge_max_in_flight": 2, "judge_max_queue": 3}
    async with judge_with("hang", **settings) as (judge, fake), asked_over_the_channel(judge) as client:
        event = asyncio.Event() if background else None
        asking = [
            asyncio.create_task(client.judge(CONVERSATION, ("a", "b"), seed, background=event)) for seed in range(50)
        ]
        while len(fake.requests) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert (judge._pool.num_in_flight, judge._pool.num_waiting) == (2, 0 if background else 3)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
