"""Peers that accept and never answer, an HTTP server and an actor, and who waits for them."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.wire.fake_cluster import FakeCluster
from wire.claim import Owner
from wire.hosting import Plan

DEADLINE_S = 0.3  # of every call that meets silence
MARGIN_S = 3.0  # in which a shared machine may come round to it
ANSWER = {"world_size": 1, "weight_version": "0.1", "checksums": {}, "count": 1}


@asynccontextmanager
async def silent_server(*routes: str, first_words: bytes = b"") -> AsyncIterator[str]:
    """Serves a URL: `routes`, or all where none is given, are never answered, and all others at once with `ANSWER`.

    `first_words`: what a route that is never answered sends before it falls silent, with headers of status 200.
    """
    forever = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if routes and request.path.strip("/") not in routes:
            return web.json_response(ANSWER)
        if first_words:
            stream = web.StreamResponse()
            await stream.prepare(request)
            await stream.write(first_words)
        await forever.wait()
        raise ConnectionResetError

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    server = TestServer(app, handler_cancellation=True)
    await server.start_server()
    try:
        yield str(server.make_url("")).rstrip("/")
    finally:
        forever.set()
        await server.close()


class SilentActor:
    """A handle of Ray's make: `actor.method.remote(...)`. Those named are never done; the others give `facts`."""

    def __init__(self, *methods: str, facts: Any = None) -> None:
        self._methods, self._facts = methods, facts

    def __getattr__(self, name: str) -> Any:
        actor = self

        class Method:
            def remote(self, *_: Any) -> Awaitable[Any]:
                return actor._call(name)

        return Method()

    async def _call(self, name: str) -> Any:
        if name in self._methods:
            await asyncio.Event().wait()
        return self._facts


class SilentCluster(FakeCluster):
    """A cluster of hosts that never answer to `method`."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self._method = method

    def launch(self, plan: Plan, owner: Owner) -> Any:
        actor = super().launch(plan, owner)
        actor.silent.add(self._method)
        return actor


async def in_time(call: Awaitable[Any]) -> Any:
    """What the call gives or raises; it fails the test where the call does not end by itself."""
    started = time.monotonic()
    try:
        return await asyncio.wait_for(call, DEADLINE_S + MARGIN_S)
    except TimeoutError:
        if time.monotonic() - started >= DEADLINE_S + MARGIN_S:
            pytest.fail("the call has no deadline")
        raise


def public_calls(cls: type) -> set[str]:
    """Names of the class's public coroutine methods, asynchronous context managers included."""
    return {
        name
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
        and (inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(inspect.unwrap(member)))
    }
