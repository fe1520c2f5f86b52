"""A fleet's surroundings without engines: servers with vLLM's control routes behind the real gate, and a learner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response

from rollout_server.gate import WeightGateMiddleware
from rollout_server.push import Superseded
from tests.serving import running_app
from wire.generation import PolicyVersion
from wire.membership import Member, Outcome, TransferReport

TOKEN = "correct-horse"
FLEET_S = 5.0


class Server:
    """One replica: `heard` is what reached it, `hanging` and `statuses` what it does instead of answering."""

    def __init__(self, world: World, index: int) -> None:
        self.world, self.index = world, index
        self.url, self.label = "", "default"
        self.hanging: set[str] = set()
        self.statuses: dict[str, int] = {}
        self.queries: list[dict[str, str]] = []
        self.app = FastAPI()
        self.app.add_api_route("/{route:path}", self.answer, methods=["GET", "POST"])
        self.restart()

    def restart(self) -> None:
        """Another process answers at the same URL from now on."""
        self.gate = WeightGateMiddleware(self.app)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.gate(scope, receive, send)

    async def answer(self, route: str, request: Request) -> Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return Response("{}", 401)
        self.world.events.append(f"{route} {self.index}")
        if route in self.hanging:
            await asyncio.Event().wait()
        if route in self.statuses:
            return Response("engine is dead", self.statuses[route])
        if route == "pause":
            self.queries.append(dict(request.query_params))
        if route == "update_weight_version":
            self.label = (await request.json())["new_version"]
        found = {"world_size": self.index + 1, "weight_version": self.label, "checksums": {"w": self.label}}
        return Response(json.dumps(found), media_type="application/json")


class World:
    """Servers and a learner that holds `version`; `events` is what reached any of them, in order.

    `failures` are what the next sends come to, one after the other: the outcome at each server by index, or an error.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.servers: list[Server] = []
        self.said: list[str] = []
        self.version: PolicyVersion | None = None
        self.failures: list[dict[int, Outcome] | Exception] = []
        self.open_failures: list[dict[int, Outcome]] = []
        self.first: int | None = None  # who fails before the others
        self.group: Sequence[Member] = ()
        self.sent_to: list[list[int]] = []
        self.gate = asyncio.Event()  # a send waits for it
        self.gate.set()

    def index_of(self, url: str) -> int:
        return next(server.index for server in self.servers if server.url == url)

    def say(self, line: str) -> None:
        self.said.append(line)

    # --- the learner (rollout_server.push.WeightSender)

    async def open_transfer(self, members: Sequence[Member], timeout_s: float) -> TransferReport:
        self.group = members
        self.events.append(f"open {[self.index_of(member.url) for member in members]}")
        return self.report(self.open_failures.pop(0) if self.open_failures else {})

    async def send_weights(self, version: PolicyVersion, push_id: str, timeout_s: float) -> TransferReport:
        if self.version is not None and version != self.version:
            raise Superseded(version.label)
        self.events.append(f"send {version.label}")
        self.sent_to.append([self.index_of(member.url) for member in self.group])
        await self.gate.wait()
        failure = self.failures.pop(0) if self.failures else {}
        if isinstance(failure, Exception):
            raise failure
        return self.report(failure)

    def report(self, failure: dict[int, Outcome]) -> TransferReport:
        outcomes = {m.url: failure.get(self.index_of(m.url), Outcome.DONE) for m in self.group}
        problems = {url: f"{url}: {outcome}" for url, outcome in outcomes.items() if outcome is not Outcome.DONE}
        first = self.servers[self.first].url if self.first is not None and failure else ""
        return TransferReport(outcomes, problems, "it broke off" if failure else "", 0.5, 0.25, 1000, first)

    def happened(self) -> list[str]:
        """Events since the last call; the order of the servers within a stage is nobody's business."""
        stages: list[str] = []
        for event in self.events:
            stage = event if event.startswith(("open", "send")) else event.split()[0]
            if not stages or stages[-1] != stage:
                stages.append(stage)
        self.events.clear()
        return stages

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Server]:
        """One more server while the context is open."""
        server = Server(self, len(self.servers))
        self.servers.append(server)
        async with running_app(server) as url:  # type: ignore[arg-type]  # an ASGI application
            server.url = url
            yield server
