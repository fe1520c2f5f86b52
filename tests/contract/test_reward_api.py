"""The real client against the real application, over a loopback socket; only the judge is a fake."""

import asyncio
import re

import aiohttp
import pytest
import uvicorn
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from reward_server.client import RewardClient
from reward_server.config import RewardSettings
from reward_server.pairings import drawn_order, pairing_named
from reward_server.scheme import Scheme
from tests.contract.fake_judging import CONVERSATION, MALFORMED, TOKEN, TURN
from tests.serving import running_app
from trainer.config import RunSettings
from trainer.services import second_judges
from wire.channel import CHANNEL_PATH
from wire.errors import ServiceError, Unauthorized
from wire.judgement import Message, Verdict
from wire.token import auth_headers

SEED = 11


def routes(app):
    """(method, path) of all; the channel is a GET until it is one of WebSocket frames."""
    return sorted(
        (method, re.sub(r"\{.*?\}", "x", route.path))
        for route in app.routes
        for method in getattr(route, "methods", ("GET",))
    )


async def given_text(text):
    return text


async def test_every_route_but_health_answers_401_without_the_token(app, judge):
    known = routes(app)
    assert {("GET", "/docs"), ("GET", "/openapi.json"), ("POST", "/v1/group"), ("POST", "/v1/judgement")} <= set(known)
    assert ("GET", CHANNEL_PATH) in known
    async with running_app(app) as url, aiohttp.ClientSession() as session:
        for method, path in [*known, ("GET", "/nowhere"), ("POST", "/health/x")]:
            for headers in ({}, auth_headers("wrong")):
                async with session.request(method, url + path, headers=headers) as reply:
                    assert reply.status == (200 if path == "/health" else 401), (method, path)
        for headers in ({}, auth_headers("wrong")):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(url + CHANNEL_PATH, headers=headers)
            assert refused.value.status == 401
        async with session.get(f"{url}/openapi.json", headers=auth_headers(TOKEN)) as reply:
            assert reply.status == 200 and "/v1/judgement" in (await reply.json())["paths"]
    assert judge.asked == []


async def test_health_follows_the_pool(app, pool):
    async with running_app(app) as url, aiohttp.ClientSession() as session:
        for pool.num_ready, status in ((1, 200), (0, 503), (2, 200)):
            async with session.get(f"{url}/health") as reply:
                assert reply.status == status


async def test_a_verdict_makes_the_round_trip_unchanged(app, judge):
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=5) as client:
        assert await client.judge(CONVERSATION, ("a 4", "b 2"), 7) == Verdict(
            scores=(4, 2), ranking=3, text="…", prompt_tokens=9
        )
        assert (await client.judge(CONVERSATION, ("a 4",), 8)).scores == (4,)
        missing = await client.judge(CONVERSATION, ("missing",), 9)
        assert missing == Verdict(missing="unreadable", text="???", attempts=3)
    assert judge.asked[0] == (CONVERSATION, ("a 4", "b 2"), 7)


async def test_a_call_of_the_background_comes_back_until_no_other_call_waits(app, judge, pool):
    pool.is_full = True
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=20) as client:
        in_background = asyncio.create_task(client.judge(CONVERSATION, ("a 4", "b 2"), 7, background=asyncio.Event()))
        assert (await client.judge(CONVERSATION, ("c 5",), 8)).scores == (5,)
        await asyncio.sleep(0.1)
        assert [responses for _, responses, _ in judge.asked] == [("c 5",)] and not in_background.done()
        pool.is_full = False
        assert (await in_background).scores == (4, 2)
    assert judge.asked[1] == (CONVERSATION, ("a 4", "b 2"), 7)


async def test_a_call_of_the_background_that_loses_its_patience_is_let_in_though_all_are_busy(app, judge, pool):
    pool.is_full = True
    patience = asyncio.Event()
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=20) as client:
        in_background = asyncio.create_task(client.judge(CONVERSATION, ("a 4", "b 2"), 7, background=patience))
        await asyncio.sleep(0.1)
        assert judge.asked == []
        patience.set()
        assert (await in_background).scores == (4, 2)
    assert judge.asked == [(CONVERSATION, ("a 4", "b 2"), 7)]


async def test_a_second_judge_is_joined_by_its_url_and_must_take_the_token(app):
    async with running_app(app) as url:
        settings = RunSettings(device="cpu", second_reward_url=url)
        async with second_judges(settings, TOKEN) as (judge,):
            assert (await judge.judge(CONVERSATION, ("a 4", "b 2"), 7, background=asyncio.Event())).scores == (4, 2)
        with pytest.raises(Unauthorized):
            async with second_judges(settings, "wrong"):
                pass
    async with second_judges(RunSettings(device="cpu"), TOKEN) as nobody:
        assert nobody == []


async def test_a_ring_of_the_client_equals_a_group_of_the_server(app, judge):
    texts = ["a 4", "b 2", "<think>never ends", "<think>c</think>c 5", ""]
    order = {"conversation": [TURN], "responses": texts, "seed": SEED}
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=5) as client:
        by_client = await client.group(CONVERSATION, [given_text(text) for text in texts], SEED)
        asked_by_client = list(judge.asked)
        judge.asked.clear()
        async with (
            aiohttp.ClientSession(headers=auth_headers(TOKEN)) as session,
            session.post(f"{url}/v1/group", json=order) as reply,
        ):
            by_server = await reply.json()
    assert by_client.model_dump(mode="json") == by_server
    assert by_client.scores == (4, 2, 1, 5, 1) and by_client.unjudged == (2, 4)
    assert sorted(asked_by_client, key=str) == sorted(judge.asked, key=str)


async def test_the_client_asks_about_a_pair_before_the_last_completion_exists(app, judge):
    order = drawn_order(3, SEED)
    completions = [asyncio.get_running_loop().create_future() for _ in range(3)]
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=5) as client:
        task = asyncio.create_task(client.group(CONVERSATION, completions, SEED))
        completions[order[0]].set_result("a 4")
        completions[order[1]].set_result("b 2")
        while not judge.asked:
            await asyncio.sleep(0.01)
        assert [responses for _, responses, _ in judge.asked] == [("a 4", "b 2")]
        completions[order[2]].set_result("c 3")
        assert None not in (await task).scores


@pytest.mark.parametrize("aggregation", ["least_squares", "mean"])
async def test_a_missing_verdict_leaves_a_hole_and_no_number(app, aggregation):
    """The mean wants a verdict in either place, least squares any verdict at all."""
    texts = ["a 4", "missing", "c 5", "d 3"]
    scheme = Scheme(pairing_named("ring"), aggregation)
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=5, scheme=scheme) as client:
        group = await client.group(CONVERSATION, [given_text(text) for text in texts], SEED)
    order = drawn_order(4, SEED)
    opposite = order[(order.index(1) + 2) % 4]
    scored = {0, 2, 3} if aggregation == "least_squares" else {opposite}
    assert group.scores == tuple(float(texts[k][-1]) if k in scored else None for k in range(4))


async def test_check_says_who_judges(app):
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=5) as client:
        info = await client.info()
    assert info["model"] == RewardSettings.judge_model_name_or_path and info["dialect"] == "boxed"
    assert info["limits"]["timeout_s"] == 900 and info["tie_break"] == 0.08
    assert info["deterministic"] is False  # what a deterministic trainer asks before it joins


async def test_a_wrong_token_is_said_so_by_every_call(app):
    async with running_app(app) as url, RewardClient(url, "wrong", timeout_s=5) as client:
        for call in (
            client.info(),
            client.judge(CONVERSATION, ("a 4",), 7),
            client.group(CONVERSATION, [given_text("a 4"), given_text("b 2")], SEED),
        ):
            with pytest.raises(Unauthorized, match=re.escape(url)):
                await call


async def test_check_names_the_url_where_nobody_answers_or_somebody_else_does():
    url = f"http://127.0.0.1:{unused_port()}"
    async with RewardClient(url, TOKEN, timeout_s=5) as client:
        with pytest.raises(ServiceError, match=re.escape(url)):
            await client.info()
    async with TestServer(web.Application()) as other:
        url = str(other.make_url("")).rstrip("/")
        async with RewardClient(url, TOKEN, timeout_s=5) as client:
            with pytest.raises(ServiceError, match=f"{re.escape(url)} does not answer /v1/info .* HTTP 404"):
                await client.info()
            assert (await client.judge(CONVERSATION, ("a 4",), 7)).missing == "refused"


async def test_a_deadline_and_a_lost_service_are_missing_verdicts_and_no_errors(app, judge):
    async with RewardClient(f"http://127.0.0.1:{unused_port()}", TOKEN, timeout_s=0.3) as client:
        assert (await client.judge(CONVERSATION, ("a 4",), 7)).missing == "server_lost"
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=0.3) as client:
        assert (await client.judge(CONVERSATION, ("hang",), 7)).missing == "timeout"


async def test_a_service_that_comes_back_within_the_deadline_is_asked_again(app):
    port = unused_port()
    config = uvicorn.Config(app, port=port, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    async with RewardClient(f"http://127.0.0.1:{port}", TOKEN, timeout_s=10) as client:
        task = asyncio.create_task(client.judge(CONVERSATION, ("a 4",), 7))
        await asyncio.sleep(0.2)
        serving = asyncio.create_task(server._serve())
        verdict = await task
        server.should_exit = True
        await serving
    assert verdict.scores == (4,)


async def test_the_judge_is_told_to_stop_when_the_client_hangs_up(app, judge):
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=0.2) as client:
        await client.judge(CONVERSATION, ("hang",), 7)
        while not judge.abandoned:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("order", MALFORMED)
async def test_a_malformed_request_is_answered_422(app, judge, order):
    async with running_app(app) as url, aiohttp.ClientSession(headers=auth_headers(TOKEN)) as session:
        for path in ("/v1/judgement", "/v1/group"):
            async with session.post(url + path, json=order) as reply:
                assert reply.status == 422
    assert judge.asked == []


async def test_a_full_queue_says_when_to_come_back_and_the_client_waits_beyond_its_deadline(app, judge, pool):
    pool.num_waiting = 2  # judge_max_queue
    order = {"conversation": [TURN], "responses": ["a 4"]}
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=3) as client:
        async with aiohttp.ClientSession(headers=auth_headers(TOKEN)) as session:
            for path in ("/v1/judgement", "/v1/group"):
                async with session.post(url + path, json=order) as reply:
                    assert reply.status == 429 and reply.headers["Retry-After"] == "1"
        refused = asyncio.create_task(client.judge(CONVERSATION, ("a 4",), 7))
        for seed in range(5):  # others get their verdicts: the queue moves
            await asyncio.sleep(0.8)
            pool.num_waiting = 0
            first = asyncio.create_task(client.judge(CONVERSATION, ("b 3",), seed))
            while (("b 3",), seed) not in [(responses, asked) for _, responses, asked in judge.asked]:
                await asyncio.sleep(0)
            pool.num_waiting = 2
            await first
        assert not refused.done()
        pool.num_waiting = 0
        assert (await refused).scores == (4,)


async def test_a_client_that_is_only_ever_told_to_wait_gives_up_at_its_deadline(app, pool):
    pool.num_waiting = 2
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=0.5) as client:
        assert (await client.judge(CONVERSATION, ("a 4",), 7)).missing == "timeout"


async def test_a_prompt_is_rendered_or_the_reason_said(app):
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=5) as client:
        assert await client.render(CONVERSATION, ("a", "b")) == "sea? | a | b"
        with pytest.raises(ServiceError, match="no turn of role 'system'"):
            await client.render((Message(role="system", content="x"),), ("a",))


async def test_metrics_count_verdicts_by_outcome_and_what_groups_show(app, judge):
    async with running_app(app) as url, aiohttp.ClientSession(headers=auth_headers(TOKEN)) as session:
        order = {"conversation": [TURN], "responses": ["a 4", "b 2"], "seed": SEED}
        async with session.post(f"{url}/v1/group", json=order) as reply:
            assert (await reply.json())["scores"] == [4, 2]
        async with session.get(f"{url}/metrics") as reply:
            page = await reply.text()
    assert "reward_swapped_pairs_total 1.0" in page and "reward_flips_total 1.0" in page  # it says 3 in both orders
    assert "reward_queue_depth 0.0" in page


async def test_the_pool_is_asked_and_changed_over_the_api(app):
    async with running_app(app) as url, RewardClient(url, TOKEN, timeout_s=5) as client:
        assert (await client.call("GET", "/v1/servers"))["count"] == 1
        assert (await client.call("PUT", "/v1/servers/count", {"count": 3}))["count"] == 3
        for method, path, message in (
            ("PUT", "/v1/servers/count", {"count": -1}),
            ("POST", "/v1/servers", {"url": "ftp://x"}),
            ("DELETE", "/v1/servers?url=http://nobody", None),
        ):
            with pytest.raises(ServiceError, match="HTTP 4"):
                await client.call(method, path, message)
