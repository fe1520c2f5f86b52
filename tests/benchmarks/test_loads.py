"""The loads of the judge's benchmark: the same requests on both ways, and a closed loop that stays closed."""

import asyncio
from itertools import count

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.loads import (
    Answer,
    Question,
    ask_straight,
    chat_request,
    closed_loop,
    full_question,
    straight_session,
    toy_question,
)
from benchmarks.standin_genrm import LONGEST_S, REPLY, SHORTEST_S, StandIn, verdict_seconds
from reward_server.config import RewardSettings
from reward_server.instruments import Instruments
from reward_server.judge import Judge
from reward_server.peer import open_session
from reward_server.pool import Pool
from wire.errors import ServiceError

SETTINGS = RewardSettings(judge_model_name_or_path="standin", judge_max_tokens=64)


class Recorder:
    """A GenRM server that notes what it is asked and answers as the stand-in does, or with `status`."""

    def __init__(self, status=200):
        self.asked, self.status = [], status
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", self.chat), web.get("/{name}", self.rest)])
        self.server = TestServer(app)

    async def chat(self, request):
        self.asked.append(await request.json())
        return web.Response(body=REPLY, status=self.status, content_type="application/json")

    async def rest(self, request):
        return web.Response()

    @property
    def url(self):
        return str(self.server.make_url("")).rstrip("/")


@pytest.fixture
async def recorder():
    made = Recorder()
    await made.server.start_server()
    yield made
    await made.server.close()


@pytest.mark.parametrize("question", [toy_question(3), full_question(4)], ids=["toy", "full"])
async def test_both_ways_send_the_very_same_request(recorder, question):
    async with open_session() as session, Pool(session, "secret", max_in_flight=4) as pool:
        pool.add(recorder.url)
        verdict = await Judge(pool, SETTINGS, Instruments(pool)).judge(
            question.conversation, question.responses, question.seed
        )
    async with straight_session() as session:
        answer = await ask_straight(session, [recorder.url], "secret", SETTINGS)(question)
    assert (
        recorder.asked[0]
        == recorder.asked[1]
        == msgspec.json.decode(msgspec.json.encode(chat_request(SETTINGS, question)))
    )
    assert verdict.scores == (4, 2) and answer == Answer(given=True, num_tokens=verdict.completion_tokens)


async def test_a_server_that_refuses_ends_the_load_with_its_words(recorder):
    recorder.status = 500
    async with straight_session() as session:
        ask = ask_straight(session, [recorder.url], "secret", SETTINGS)
        with pytest.raises(ServiceError, match="HTTP 500"):
            await closed_loop(ask, lambda worker: iter([toy_question(worker)]), 4, ramp_s=0.0, window_s=1.0)


async def test_the_straight_way_takes_servers_in_turn(recorder):
    other = Recorder()
    await other.server.start_server()
    async with straight_session() as session:
        ask = ask_straight(session, [recorder.url, other.url], "secret", SETTINGS)
        await closed_loop(ask, lambda worker: iter([toy_question(worker)] * 2), 5, ramp_s=0.0, window_s=5.0)
    await other.server.close()
    assert len(recorder.asked) == len(other.asked) == 5


async def test_a_closed_loop_holds_its_number_in_flight_and_awaits_the_last():
    in_flight = most = 0

    async def ask(question):
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.02)
        in_flight -= 1
        return Answer(True, 1)

    samples = await closed_loop(ask, lambda worker: (toy_question(i) for i in count()), 5, ramp_s=0.05, window_s=0.2)
    assert most == 5 and in_flight == 0
    assert all(0 <= sample.sent < 0.25 and sample.answered - sample.sent >= 0.02 for sample in samples)


def test_a_verdict_time_follows_from_the_seed_and_scales_evenly():
    seconds = [verdict_seconds(seed, speedup=1.0) for seed in range(2000)]
    assert min(seconds) == SHORTEST_S and max(seconds) == LONGEST_S
    assert [verdict_seconds(seed, speedup=4.0) for seed in range(2000)] == [value / 4 for value in seconds]


async def test_the_stand_in_takes_the_time_that_it_says():
    question = Question.of(toy_question(0).conversation, ("one", "two"), seed=5)
    sent = []

    async def receive():
        return {"type": "http.request", "body": msgspec.json.encode(chat_request(SETTINGS, question))}

    async def send(message):
        sent.append(message)

    clock = asyncio.get_running_loop().time
    began = clock()
    await StandIn(speedup=200.0)({"type": "http", "path": "/v1/chat/completions"}, receive, send)
    assert clock() - began >= verdict_seconds(question.genrm_seed, 200.0)
    assert sent[0]["status"] == 200 and b"boxed" in sent[1]["body"]
