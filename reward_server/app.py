"""The scoring API.

POST   /v1/judgement       one conversation, one or two responses -> Verdict
POST   /v1/group           one conversation, K responses          -> GroupVerdict
POST   /v1/render          one conversation, one or two responses -> the prompt that the judge would read
WS     /v1/judgements      many judgements at once, over one connection: `wire/channel.py`
GET    /v1/info            the judge's name, dialect and limits, and its servers
GET    /v1/servers         the pool of GenRM servers
POST   /v1/servers         {"url": URL}: join a running server
DELETE /v1/servers?url=URL let a joined server go
PUT    /v1/servers/count   {"count": N}: so many servers of the service's own
GET    /metrics            Prometheus' text format
GET    /openapi.json       this description for machines; /docs for people
GET    /health             200 while a GenRM answers, else 503; the only route without the token

A full queue answers 429 with Retry-After: nothing was begun, and nothing is lost by asking again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request, Response, WebSocket
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from reward_server.admission import Admission, Entering
from reward_server.channel_server import serve_channel
from reward_server.config import RewardSettings
from reward_server.group import judge_group
from reward_server.instruments import Instruments
from reward_server.pool import Pool, Server
from reward_server.prefix_cache import hit_share
from reward_server.scheme import Scheme
from reward_server.startup import Startup
from wire.channel import CHANNEL_PATH
from wire.errors import ConfigError, ServiceError
from wire.judgement import GroupRequest, GroupVerdict, JudgementRequest, Message, Verdict
from wire.token import TokenMiddleware

CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is there to read it

T = TypeVar("T")


class Judging(Entering, Protocol):
    """What the API asks of a judge; `judge.Judge` is the real one."""

    async def judge(
        self, conversation: Sequence[Message], responses: Sequence[str], seed: int, vote: int = 0
    ) -> Verdict:
        """The verdict on one response, or on two against each other."""

    def is_under_way(self, conversation: Sequence[Message], responses: Sequence[str], seed: int, vote: int = 0) -> bool:
        """Whether the same is judged already, and would be joined."""

    async def render(self, conversation: Sequence[Message], responses: Sequence[str]) -> str:
        """The prompt that the judge would read."""


class Started(Protocol):
    """The GenRM servers that the service starts itself; `started.StartedServers` is the real one."""

    @property
    def count(self) -> int:
        """How many there are, or are to be."""

    def resize(self, count: int) -> None:
        """Make them so many."""

    def owns(self, url: str) -> bool:
        """Whether the server at `url` is one of them."""

    @property
    def unplaced(self) -> list[tuple[str, Startup]]:
        """Names of those that have no node yet, and what they wait for."""


class ServerUrl(BaseModel):
    """A running GenRM server, such as `{"url": "http://10.0.0.7:8000"}`."""

    url: str = Field(pattern=r"^https?://")


class ServerCount(BaseModel):
    """How many servers the service is to run itself."""

    count: int = Field(ge=0)


def build_app(
    settings: RewardSettings, judge: Judging, pool: Pool, started: Started, instruments: Instruments, token: str
) -> FastAPI:
    """The ASGI application; every route but /health asks for `token`, the documentation's included."""
    app = FastAPI(title="Reward service", summary="Scores of completions by a generative judge.")
    app.add_middleware(TokenMiddleware, token=token)
    _add_judging(app, settings, judge, pool, instruments)
    _add_pool(app, settings, pool, started)

    @app.get("/v1/info")
    async def info() -> dict[str, Any]:
        """Who judges, within which limits, and how the pool stands."""
        return _info(settings) | _pool_state(pool, started)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters and gauges for Prometheus."""
        return Response(instruments.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health")
    async def health() -> Response:
        """200 while a GenRM answers, else 503."""
        return Response(status_code=200 if pool.num_ready else 503)

    return app


def _add_judging(app: FastAPI, settings: RewardSettings, judge: Judging, pool: Pool, instruments: Instruments) -> None:
    scheme = Scheme.of(settings)

    admission = Admission(
        pool, judge, instruments, max_queue=settings.judge_max_queue, max_in_flight=settings.judge_max_in_flight
    )

    async def judged(order: JudgementRequest) -> Verdict:
        question = (order.conversation, order.responses, order.seed, order.vote)
        admission.take_in(background=order.background, joins=lambda: judge.is_under_way(*question))
        return await judge.judge(*question)

    @app.post("/v1/judgement", response_model=Verdict)
    async def judgement(order: JudgementRequest, request: Request) -> Response:
        """One verdict on one response, or on two against each other."""
        return _json(await _unless_abandoned(request, judged(order)))

    @app.websocket(CHANNEL_PATH)
    async def judgements(socket: WebSocket) -> None:
        """Many verdicts, over one connection."""
        await serve_channel(socket, judged)

    @app.post("/v1/group", response_model=GroupVerdict)
    async def group(order: GroupRequest, request: Request) -> Response:
        """K scores by the service's own pairing and aggregation."""
        admission.take_in()

        async def judge_pair(first: str, second: str | None, seed: int, vote: int) -> Verdict:
            return await judge.judge(order.conversation, (first,) if second is None else (first, second), seed, vote)

        given = [_given(response) for response in order.responses]
        verdict = await _unless_abandoned(request, judge_group(judge_pair, given, order.seed, scheme))
        instruments.note_group(verdict)
        return _json(verdict)

    @app.post("/v1/render")
    async def render(order: JudgementRequest) -> dict[str, str]:
        """The prompt as the served model reads it, through its own chat template."""
        try:
            return {"prompt": await judge.render(order.conversation, order.responses)}
        except ServiceError as error:
            raise HTTPException(422, str(error)) from error
        except TimeoutError as error:
            raise HTTPException(503, "no GenRM server answers") from error


def _add_pool(app: FastAPI, settings: RewardSettings, pool: Pool, started: Started) -> None:
    @app.get("/v1/servers")
    async def servers() -> dict[str, Any]:
        """The pool: each server with its state and what it has in flight."""
        return _pool_state(pool, started)

    @app.post("/v1/servers")
    async def join(server: ServerUrl) -> dict[str, Any]:
        """Join a running GenRM server; it gets calls as soon as it answers."""
        pool.add(server.url)
        return _pool_state(pool, started)

    @app.delete("/v1/servers")
    async def leave(url: Annotated[str, Query()]) -> dict[str, Any]:
        """Let a joined server go; what it has in flight, it finishes or hands over."""
        if started.owns(url):
            raise HTTPException(409, f"{url} was started by the service; lower its count instead")
        if not any(server.url == url.rstrip("/") for server in pool.servers):
            raise HTTPException(404, f"{url} is no server of this pool")
        app.state.leaving = getattr(app.state, "leaving", set())
        task = asyncio.create_task(pool.remove(url, settings.judge_timeout_s))
        app.state.leaving.add(task)
        task.add_done_callback(app.state.leaving.discard)
        await asyncio.sleep(0)  # lets it begin, so that the answer shows it as leaving
        return _pool_state(pool, started)

    @app.put("/v1/servers/count")
    async def resize(wanted: ServerCount) -> dict[str, Any]:
        """Start or end servers of the service's own until there are so many."""
        try:
            started.resize(wanted.count)
        except ConfigError as error:
            raise HTTPException(422, str(error)) from error
        return _pool_state(pool, started)


def _json(message: Verdict | GroupVerdict) -> Response:
    """The message as it is; FastAPI would check it against its own type once more, and write it in two passes."""
    return Response(message.model_dump_json(), media_type="application/json")


def _given(text: str) -> asyncio.Future[str | None]:
    future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    future.set_result(text)
    return future


def _info(settings: RewardSettings) -> dict[str, Any]:
    return {
        "model": settings.judge_model_name_or_path,
        "revision": settings.judge_revision,
        "dialect": settings.judge_dialect,
        "principle": settings.judge_principle,
        "pairing": settings.judge_pairing,
        "aggregation": settings.judge_aggregation,
        "votes": settings.judge_votes,
        "tie_break": settings.tie_break,
        "deterministic": settings.deterministic,
        "limits": {
            "max_model_len": settings.judge_max_model_len,
            "max_tokens": settings.judge_max_tokens,
            "max_in_flight": settings.judge_max_in_flight,
            "max_queue": settings.judge_max_queue,
            "retries": settings.judge_retries,
            "timeout_s": settings.judge_timeout_s,
        },
    }


def _pool_state(pool: Pool, started: Started) -> dict[str, Any]:
    return {
        "count": started.count,
        "queue_depth": pool.num_waiting,
        "prefix_cache_hit_share": hit_share([server.cache for server in pool.servers]),
        "servers": [
            *(_row(server, started.owns(server.url)) for server in pool.servers),
            *(_unplaced_row(name, startup) for name, startup in started.unplaced),
        ],
    }


def _row(server: Server, is_started: bool) -> dict[str, Any]:
    counts = {
        "in_flight": server.in_flight,
        "room": server.room.size,
        "answers": server.answers,
        "losses": server.losses,
    }
    return {"url": server.url, "state": server.state, "started": is_started} | counts | _start(server.startup)


def _unplaced_row(name: str, startup: Startup) -> dict[str, Any]:
    """A server of the service's own that has no URL yet."""
    counts = dict.fromkeys(("in_flight", "room", "answers", "losses"), 0)
    return {"url": name, "state": "starting", "started": True} | counts | _start(startup)


def _start(startup: Startup | None) -> dict[str, Any]:
    """What a server does until it answers, and how many seconds its files and its loading took."""
    if startup is None:
        return {"doing": "", "fetch_s": None, "load_s": None}
    return {"doing": startup.doing, "fetch_s": startup.fetch_s, "load_s": startup.load_s}


async def _unless_abandoned(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up: an unread verdict costs minutes of GPU."""
    working = asyncio.current_task()
    assert working is not None
    hung_up = False

    async def cancel_when_it_hangs_up() -> None:
        nonlocal hung_up
        while (await request.receive())["type"] != "http.disconnect":
            pass
        hung_up = True
        working.cancel()

    watch = asyncio.create_task(cancel_when_it_hangs_up())
    try:
        return await work
    except asyncio.CancelledError:
        if not hung_up:
            raise
        working.uncancel()
        raise HTTPException(CLIENT_CLOSED_REQUEST, "the client hung up") from None
    finally:
        watch.cancel()
