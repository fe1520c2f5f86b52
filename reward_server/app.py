"""The scoring API.

POST /v1/judgement   one conversation, one or two responses -> Verdict
POST /v1/group       one conversation, K responses          -> GroupVerdict
GET  /v1/info        the judge's name, dialect and limits
GET  /health         200 while the GenRM answers, else 503; the only route without the token
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response

from reward_server.config import RewardSettings
from reward_server.group import judge_group
from wire.judgement import GroupRequest, GroupVerdict, JudgementRequest, Message, Verdict
from wire.token import TokenMiddleware

CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is there to read it

T = TypeVar("T")


class Judging(Protocol):
    """What the API asks of a judge; `judge.Judge` is the real one."""

    async def judge(self, conversation: Sequence[Message], responses: Sequence[str], seed: int) -> Verdict:
        """The verdict on one response, or on two against each other."""

    async def is_healthy(self) -> bool:
        """Whether a verdict can be had now."""


def build_app(settings: RewardSettings, judge: Judging, token: str) -> FastAPI:
    """The ASGI application; every route but /health asks for `token`, the documentation's included."""
    app = FastAPI(title="Reward service")
    app.add_middleware(TokenMiddleware, token=token)

    @app.post("/v1/judgement")
    async def judgement(order: JudgementRequest, request: Request) -> Verdict:
        """One verdict on one response, or on two against each other."""
        return await _unless_abandoned(request, judge.judge(order.conversation, order.responses, order.seed))

    @app.post("/v1/group")
    async def group(order: GroupRequest, request: Request) -> GroupVerdict:
        """K scores by a ring of comparisons."""

        async def judge_pair(first: str, second: str | None, seed: int) -> Verdict:
            return await judge.judge(order.conversation, (first,) if second is None else (first, second), seed)

        given = [_given(response) for response in order.responses]
        return await _unless_abandoned(request, judge_group(judge_pair, given, order.seed, settings.tie_break))

    @app.get("/v1/info")
    async def info() -> dict[str, Any]:
        """Who judges, and within which limits."""
        return _info(settings)

    @app.get("/health")
    async def health() -> Response:
        """200 while the GenRM answers, else 503."""
        return Response(status_code=200 if await judge.is_healthy() else 503)

    return app


def _given(text: str) -> asyncio.Future[str | None]:
    future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    future.set_result(text)
    return future


def _info(settings: RewardSettings) -> dict[str, Any]:
    return {
        "model": settings.judge_model_name_or_path,
        "dialect": settings.judge_dialect,
        "tie_break": settings.tie_break,
        "limits": {
            "max_model_len": settings.judge_max_model_len,
            "max_tokens": settings.judge_max_tokens,
            "max_in_flight": settings.judge_max_in_flight,
            "retries": settings.judge_retries,
            "timeout_s": settings.judge_timeout_s,
        },
    }


async def _unless_abandoned(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up: an unread verdict costs minutes of GPU."""
    working, hung_up = asyncio.create_task(work), asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait({working, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(CLIENT_CLOSED_REQUEST, "the client hung up")
        return working.result()
    finally:
        working.cancel()
        hung_up.cancel()
        await asyncio.gather(working, hung_up, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
