"""The fleet's control API: an operator, or another scheduler, looks at the fleet and makes it larger or smaller.

    GET    /v1/replicas             the fleet: epoch, live version, each replica
    PUT    /v1/replicas/count       {"count": 3}: so many replicas of the run's own
    POST   /v1/replicas             {"url": "http://..."}: a running replica joins
    DELETE /v1/replicas?url=...     it leaves, when it has written what it has
    GET    /v1/checksums            checksums of the weights that each ready replica holds
    GET    /health                  open; all other routes ask for the token

The driver serves it; `python -m rollout_server.scale` speaks to it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from rollout_server.config import RolloutSettings
from rollout_server.fleet import Fleet
from rollout_server.rendezvous import bound_socket
from rollout_server.started import StartedReplicas
from wire.errors import ConfigError, ServiceError
from wire.process import url_of
from wire.token import OPEN_PATHS, carries_token

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ControlApi:
    """The routes over a fleet.

    Args:
        fleet: joined and started replicas.
        started: those of the run's own.
        token: the run's access token.
    """

    def __init__(self, fleet: Fleet, started: StartedReplicas, token: str) -> None:
        self._fleet, self._started = fleet, started
        self._leaving: set[asyncio.Task[None]] = set()
        self._token = token
        self.app = web.Application(middlewares=[self._guard])
        self.app.router.add_get("/health", self._health)
        self.app.router.add_get("/v1/replicas", self._show)
        self.app.router.add_get("/v1/checksums", self._checksums)
        self.app.router.add_put("/v1/replicas/count", self._resize)
        self.app.router.add_post("/v1/replicas", self._add)
        self.app.router.add_delete("/v1/replicas", self._remove)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if request.path not in OPEN_PATHS and not carries_token(given, self._token):
            return web.json_response({"error": "this route needs the run's access token"}, status=401)
        try:
            return await handler(request)
        except ConfigError as error:
            return web.json_response({"error": str(error)}, status=400)
        except ServiceError as error:
            return web.json_response({"error": str(error)}, status=502)

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    def state(self) -> dict[str, Any]:
        """The fleet, with the replicas that are only starting; `count` is of the run's own."""
        fleet = self._fleet.state()
        return fleet | {"count": self._started.count, "replicas": [*fleet["replicas"], *self._started.state()]}

    async def _show(self, _request: web.Request) -> web.Response:
        return web.json_response(self.state())

    async def _checksums(self, _request: web.Request) -> web.Response:
        return web.json_response({"checksums": await self._fleet.checksums()})

    async def _resize(self, request: web.Request) -> web.Response:
        count = (await _body(request)).get("count")
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ConfigError(f"count ({count!r}) must be a whole number of at least 0")
        self._started.resize(count)
        return web.json_response(self.state())

    async def _add(self, request: web.Request) -> web.Response:
        await self._fleet.add(_url(await _body(request)))
        return web.json_response(self.state())

    async def _remove(self, request: web.Request) -> web.Response:
        url = _url(dict(request.query))
        known = self._fleet.membership.find(url)
        if known is None:
            raise ConfigError(f"{url} is no replica of this fleet; see `python -m rollout_server.scale status`")
        if known.is_started:
            raise ConfigError(f"{url} is of the run's own: give their number (`python -m rollout_server.scale -1`)")
        leaving = asyncio.create_task(self._fleet.remove(url))
        self._leaving.add(leaving)  # the answer does not wait until the replica has written what it has
        leaving.add_done_callback(self._leaving.discard)
        await asyncio.sleep(0)
        return web.json_response(self.state())


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except json.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise ConfigError("the body must be a JSON object")
    return body


def _url(fields: dict[str, Any]) -> str:
    url = fields.get("url")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ConfigError(f"url {url!r} must start with http:// or https://")
    return url.rstrip("/")


@asynccontextmanager
async def served(api: ControlApi, settings: RolloutSettings) -> AsyncIterator[str]:
    """Serve the API on `bind_address` while the context is open; yields its URL.

    Raises:
        ConfigError: the address is not this host's, or the port is taken.
    """
    try:
        listener = bound_socket(settings.bind_address, settings.fleet_port, settings.port_range)
    except OSError as error:
        raise ConfigError(
            f"bind_address {settings.bind_address} with fleet_port {settings.fleet_port} cannot be listened on: "
            f"{error.strerror}; choose another, or port 0 for a free one"
        ) from error
    runner = web.AppRunner(api.app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield url_of(settings.bind_address, listener.getsockname()[1])
    finally:
        await runner.cleanup()
