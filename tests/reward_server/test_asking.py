"""What a verdict waits for: the judge, a queue, or nobody who answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import reward_server.asking
from reward_server.asking import DOES_NOT_ANSWER, JUDGES, QUEUE_IS_FULL, Asking
from reward_server.client import HAS_NO_PLACE, RewardClient
from tests.until import until
from wire.judgement import Message, Verdict
from wire.waits import WAITS

TALK = (Message(role="user", content="sea?"),)
GENRM = "http://10.0.0.9:8200"


class Service:
    """Answers by its `answers`, one after the other, the last again and again: a status, or None for a verdict. A
    verdict waits for `gate`."""

    def __init__(self, *answers: int | None) -> None:
        self.answers, self.gate, self.num_asked = list(answers), asyncio.Event(), 0
        self.gate.set()
        app = web.Application()
        app.router.add_post("/v1/judgement", self.answer)
        self.server = TestServer(app)

    async def answer(self, request: web.Request) -> web.Response:
        self.num_asked += 1
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if status is not None:
            return web.Response(status=status)
        await self.gate.wait()
        verdict = Verdict(scores=(4.0, 2.0), ranking=2, server=GENRM)
        return web.Response(text=verdict.model_dump_json(), content_type="application/json")


@pytest.fixture
def over() -> Iterator[list[tuple[str, str]]]:
    """(peer, reason) of the waits that are over."""
    found: list[tuple[str, str]] = []
    with WAITS.heard_by(lambda wait, _: found.append((wait.peer, wait.reason))):
        yield found


def reasons() -> list[str]:
    return [wait.reason for wait in WAITS.current]


async def judged(service: Service, **changes: Any) -> tuple[str, Verdict]:
    async with service.server:
        url = str(service.server.make_url("")).rstrip("/")
        async with RewardClient(url, "token", timeout_s=20, **changes) as client:
            return f"judge {url}", await client.judge(TALK, ("a", "b"), 7)


async def test_a_verdict_is_the_work_of_the_genrm_server_that_gave_it(over) -> None:
    _, verdict = await judged(Service(None))
    assert verdict.scores == (4.0, 2.0) and over == [(f"genrm {GENRM}", JUDGES)]


@pytest.mark.parametrize(("status", "reason"), [(429, QUEUE_IS_FULL), (503, DOES_NOT_ANSWER)])
async def test_a_call_that_was_turned_away_is_one_wait_until_it_is_let_in(
    status: int, reason: str, over, monkeypatch
) -> None:
    monkeypatch.setattr(reward_server.asking, "LET_IN_AFTER_S", {QUEUE_IS_FULL: 100.0, DOES_NOT_ANSWER: 100.0})
    judge, _ = await judged(Service(status, status, status, None))
    assert over == [(judge, reason), (f"genrm {GENRM}", JUDGES)]


async def test_a_call_that_is_not_turned_away_any_more_waits_for_the_judge(over, monkeypatch) -> None:
    monkeypatch.setattr(reward_server.asking, "LET_IN_AFTER_S", {QUEUE_IS_FULL: 0.02})
    service = Service(429, None)
    service.gate.clear()
    asking = asyncio.create_task(judged(service))
    await until(lambda: reasons() == [QUEUE_IS_FULL])
    await until(lambda: reasons() == [JUDGES] and service.num_asked == 2)
    assert [reason for _, reason in over] == [QUEUE_IS_FULL]
    service.gate.set()
    await asking
    assert [reason for _, reason in over] == [QUEUE_IS_FULL, JUDGES] and reasons() == []


async def test_one_that_is_turned_away_again_keeps_its_wait_and_its_age() -> None:
    with Asking(url="http://j") as call:
        (wait,) = WAITS.current
        since = wait.since
        call.is_sent()
        for turn, reason in (
            (call.is_refused, QUEUE_IS_FULL),
            (call.is_lost, DOES_NOT_ANSWER),
            (call.is_refused, QUEUE_IS_FULL),
        ):
            turn()
            call.is_sent()
            assert WAITS.current == [wait] and (wait.reason, wait.since) == (reason, since)
        assert (call.attempts, call.lost) == (4, False)
    assert WAITS.current == []


async def test_a_verdict_that_nobody_waits_for_any_more_is_no_wait(over) -> None:
    service = Service(429)
    asking = asyncio.create_task(judged(service))
    await until(lambda: reasons() == [QUEUE_IS_FULL])
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert reasons() == [] and len(over) == 1


async def test_verdicts_beyond_the_places_wait_for_one_and_get_it(over) -> None:
    service = Service(None)
    service.gate.clear()
    async with service.server:
        url = str(service.server.make_url("")).rstrip("/")
        async with RewardClient(url, "token", timeout_s=20, most_at_once=1) as client:
            calls = [asyncio.create_task(client.judge(TALK, ("a", "b"), seed)) for seed in range(3)]
            await until(lambda: reasons() == [JUDGES, HAS_NO_PLACE, HAS_NO_PLACE])
            calls[1].cancel()
            service.gate.set()
            await asyncio.gather(calls[0], calls[2])
    assert [reason for _, reason in over].count(JUDGES) == 2 and reasons() == []
    assert service.num_asked == 2
