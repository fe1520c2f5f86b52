"""Many judgements over one connection: the real client against the real application, over a loopback socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import SHUT_RDWR

import aiohttp
import msgspec
import pytest
from aiohttp.test_utils import unused_port
from fastapi import FastAPI

from reward_server import channel, channel_server
from reward_server.client import RewardClient
from tests.contract.fake_judging import CONVERSATION, MALFORMED, TOKEN, TURN, FakeJudge, FakePool
from tests.serving import running_app
from tests.until import until
from wire.channel import CHANNEL_PATH, Answered
from wire.judgement import Verdict
from wire.token import auth_headers

ORDER = {"conversation": [TURN], "responses": ["a 4", "b 2"], "seed": 7}
HANGS = ORDER | {"responses": ["hang"]}


class Counting:
    """ASGI: counts requests by kind and path."""

    def __init__(self, app: FastAPI) -> None:
        self._app, self.seen = app, []

    async def __call__(self, scope, receive, send) -> None:
        self.seen.append((scope["type"], scope["path"]))
        await self._app(scope, receive, send)


@asynccontextmanager
async def by_hand(url: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """The channel as any other program sees it."""
    async with (
        aiohttp.ClientSession(headers=auth_headers(TOKEN)) as session,
        session.ws_connect(url + CHANNEL_PATH) as socket,
    ):
        yield socket


async def next_answer(socket: aiohttp.ClientWebSocketResponse) -> Answered:
    return msgspec.json.decode(await socket.receive_str(timeout=10), type=Answered)


async def test_a_hundred_verdicts_come_over_one_connection(app: FastAPI, judge: FakeJudge) -> None:
    counting = Counting(app)
    async with running_app(counting) as url, RewardClient(url, TOKEN, timeout_s=10) as client:
        verdicts = await asyncio.gather(*(client.judge(CONVERSATION, (f"a {n % 10}",), n) for n in range(100)))
    assert [verdict.scores for verdict in verdicts] == [(float(n % 10),) for n in range(100)]
    assert counting.seen == [("websocket", CHANNEL_PATH)] and len(judge.asked) == 100


async def test_answers_come_as_they_are_ready(app: FastAPI) -> None:
    async with running_app(app) as url, by_hand(url) as socket:
        for number, order in ((3, HANGS), (8, ORDER), (2, ORDER | {"seed": 8})):
            await socket.send_json({"id": number, "order": order})
        answers = [await next_answer(socket) for _ in range(2)]
    assert {answer.id for answer in answers} == {8, 2}
    for answer in answers:
        assert (answer.status, Verdict.model_validate_json(bytes(answer.body)).scores) == (200, (4, 2))


async def test_what_is_withdrawn_is_not_judged_on_and_the_others_are(app: FastAPI, judge: FakeJudge) -> None:
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=60) as client:
        asking = [asyncio.create_task(client.judge(CONVERSATION, ("hang",), seed)) for seed in range(3)]
        await until(lambda: len(judge.asked) == 3)
        asking[1].cancel()
        await until(lambda: judge.abandoned == 1)
        assert (await client.judge(CONVERSATION, ("a 4",), 9)).scores == (4,)
        await asyncio.sleep(0.05)
        assert judge.abandoned == 1 and not asking[0].done()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_with_a_farewell_ends_what_was_asked(
    app: FastAPI, judge: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_server, "LINGER_S", 100.0)
    async with running_app(app) as url:
        async with by_hand(url) as socket:
            for number in range(3):
                await socket.send_json({"id": number, "order": HANGS | {"seed": number}})
            await until(lambda: len(judge.asked) == 3)
            assert judge.abandoned == 0
        await until(lambda: judge.abandoned == 3)


async def test_over_a_connection_that_was_cut_it_goes_on_for_a_while(
    app: FastAPI, judge: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_server, "LINGER_S", 0.5)
    async with running_app(app) as url, by_hand(url) as socket:
        await socket.send_json({"id": 1, "order": HANGS})
        await until(lambda: len(judge.asked) == 1)
        cut = asyncio.get_running_loop().time()
        socket.get_extra_info("socket").shutdown(SHUT_RDWR)
        await until(lambda: judge.abandoned == 1)
        assert asyncio.get_running_loop().time() - cut >= 0.5


async def test_a_withdrawal_of_what_is_answered_already_changes_nothing(app: FastAPI) -> None:
    async with running_app(app) as url, by_hand(url) as socket:
        for _ in range(2):  # and its number may be used again
            await socket.send_json({"id": 1, "order": ORDER})
            assert (await next_answer(socket)).status == 200
            await socket.send_json({"id": 1})


@pytest.mark.parametrize("order", [*MALFORMED, [], 7])
async def test_a_malformed_order_is_answered_422_and_the_next_is_judged(app: FastAPI, order: object) -> None:
    async with running_app(app) as url, by_hand(url) as socket:
        await socket.send_json({"id": 1, "order": order})
        refusal = await next_answer(socket)
        assert (refusal.id, refusal.status) == (1, 422) and msgspec.json.decode(refusal.body)["detail"]
        await socket.send_json({"id": 2, "order": ORDER})
        assert (await next_answer(socket)).status == 200


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (["nonsense"], "JSON is malformed"),
        (["[]"], "Expected `object`, got `array`"),
        (['{"order": {}}'], "missing required field `id`"),
        (['{"id": "x", "order": {}}'], "Expected `int`, got `str`"),
        ([json.dumps({"id": 1, "order": HANGS})] * 2, "id 1 is under way already"),
    ],
    ids=["no JSON", "no object", "no id", "no number", "twice"],
)
async def test_a_frame_that_is_none_of_the_channels_closes_it_with_the_reason(
    app: FastAPI, judge: FakeJudge, frames: list[str], reason: str
) -> None:
    async with running_app(app) as url, by_hand(url) as socket:
        for frame in frames:
            await socket.send_str(frame)
        end = await socket.receive(timeout=10)
        assert end.type is aiohttp.WSMsgType.CLOSE and end.data == 1008 and reason in end.extra
        await until(lambda: judge.abandoned == len(judge.asked))


async def test_a_full_queue_is_answered_429_with_the_time_to_come_back(app: FastAPI, pool: FakePool) -> None:
    pool.num_waiting = 2  # judge_max_queue
    async with running_app(app) as url, by_hand(url) as socket:
        await socket.send_json({"id": 5, "order": ORDER})
        answer = await next_answer(socket)
    assert (answer.id, answer.status, answer.retry_after_s) == (5, 429, 1.0)


async def test_a_judge_that_fails_is_answered_500_and_asked_again(
    app: FastAPI, judge: FakeJudge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failures = judge.judge, [RuntimeError("a mistake of ours")]

    async def failing(*question, **more) -> Verdict:
        if failures:
            raise failures.pop()
        return await real(*question, **more)

    monkeypatch.setattr(judge, "judge", failing)
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=10) as client:
        assert (await client.judge(CONVERSATION, ("a 4",), 7)).scores == (4,)
    assert "a mistake of ours" in caplog.text


async def test_an_order_too_large_for_a_frame_goes_by_itself(
    app: FastAPI, judge: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "LARGEST_ORDER", 2000)
    counting = Counting(app)
    async with running_app(counting) as url, RewardClient(url, TOKEN, timeout_s=10) as client:
        assert (await client.judge(CONVERSATION, ("x" * 2000 + "4",), 7)).scores == (4,)
        assert (await client.judge(CONVERSATION, ("a 3",), 8)).scores == (3,)
    assert counting.seen == [("http", channel.PLAIN_PATH), ("websocket", CHANNEL_PATH)]


async def test_a_service_that_ends_is_asked_again_when_it_is_back(app: FastAPI, judge: FakeJudge) -> None:
    port = unused_port()
    async with RewardClient(f"http://127.0.0.1:{port}", TOKEN, timeout_s=60) as client:
        async with running_app(app, port):
            asking = asyncio.create_task(client.judge(CONVERSATION, ("hang",), 1))
            await until(lambda: len(judge.asked) == 1)
        await until(lambda: judge.abandoned == 1)
        assert not asking.done()
        async with running_app(app, port):
            await until(lambda: len(judge.asked) == 2)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: judge.abandoned == 2)
