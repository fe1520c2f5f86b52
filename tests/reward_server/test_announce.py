"""Which of the announced reward services a run joins."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from reward_server.announce import announced, answers, choose, facts_of
from reward_server.config import RewardSettings

WANTED = facts_of(RewardSettings(device="cpu"))


async def ready(url: str) -> bool:
    return url != "http://dead"


async def test_the_first_that_judges_as_the_run_wants_and_answers_is_joined() -> None:
    said: list[str] = []
    other = {**WANTED, "judge_dialect": "json"}
    found = {"http://other": other, "http://dead": WANTED, "http://a": WANTED, "http://b": WANTED}
    assert await choose(found, WANTED, said.append, ready) == "http://a"
    assert said == [
        "found in the cluster, and not joined: reward service http://other has judge_dialect 'json'",
        "found in the cluster, and not joined: reward service http://dead does not answer",
        "found in the cluster: reward service http://a",
    ]


async def test_where_none_was_announced_none_is_joined_and_nothing_is_said() -> None:
    assert await choose({}, WANTED, pytest.fail) is None


@pytest.mark.parametrize("status", [200, 503])
async def test_a_service_answers_when_it_is_ready(status: int) -> None:
    async def health(_: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/health", health)
    async with TestServer(app) as server:
        assert await answers(str(server.make_url("")).rstrip("/")) == (status == 200)
    assert not await answers(f"http://127.0.0.1:{unused_port()}")


def test_without_a_cluster_nothing_is_announced() -> None:
    with announced(RewardSettings(device="cpu"), "http://a"):
        pass
