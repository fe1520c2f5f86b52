"""The stand-in replicas as the measuring process holds them, and a stand-in of the learner's end of a push."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rollout_server.waiting import Deadline
from trainer.fleet_sync import FleetSyncClient
from wire.errors import ServiceError
from wire.generation import PolicyVersion
from wire.membership import Member, TransferReport

LINE_LIMIT = 2**20  # bytes; the first line names every URL
STOP_TIMEOUT_S = 10.0


class StandInFleet:
    """Stand-in replicas in a process of their own, which ends with the context.

    Args:
        num: replicas.
        flags: of `benchmarks.standin_replica`, by name.
    """

    def __init__(self, num: int, **flags: float) -> None:
        own = [f"--{name}={value}" for name, value in flags.items()]
        self._command = [sys.executable, "-m", "benchmarks.standin_replica", str(num), *own]
        self._process: asyncio.subprocess.Process | None = None
        self._one_order = asyncio.Lock()
        self.urls: list[str] = []

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe, limit=LINE_LIMIT)
        self.urls = json.loads(await self._line())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process is not None and process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    async def take(self, *indices: int) -> None:
        """Cut off the replicas at these places of `urls`."""
        await self._order(take=indices)

    async def give(self, *indices: int) -> None:
        """Bring them back; returns when they answer."""
        await self._order(give=indices)

    async def _order(self, **order: Sequence[int]) -> None:
        assert self._process is not None and self._process.stdin is not None
        async with self._one_order:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            await self._line()

    async def _line(self) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise ServiceError("the stand-in replicas ended early")
        return line


class StandInSender:
    """The learner's end of a push without weights: the control plane's real calls, and nothing is broadcast.

    It keeps what `trainer.publish.WeightSender` keeps: one group at a time, none after a failure.

    Args:
        token: the run's access token.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._client: FleetSyncClient | None = None

    async def open_transfer(self, members: Sequence[Member], timeout_s: float) -> TransferReport:
        """Each member is asked to join a group that nobody leads."""
        client = self._client = FleetSyncClient(members, self._token)
        client.begin(Deadline(timeout_s))
        return await asyncio.to_thread(_reported, client, client.init_weight_transfer_engine, {"rank_offset": 1})

    async def send_weights(self, version: PolicyVersion, push_id: str, timeout_s: float) -> TransferReport:
        """Each member starts, receives nothing, and finishes."""
        client = self._client
        if client is None:
            raise ServiceError("send_weights before open_transfer")
        client.begin(Deadline(timeout_s), push_id=push_id, version=version.label)
        return await asyncio.to_thread(_reported, client, client.update_weights, {"names": []})


def _reported(client: FleetSyncClient, call: Any, info: dict[str, Any]) -> TransferReport:
    error = ""
    try:
        call(info)
    except ServiceError as problem:
        error = str(problem)
    return TransferReport(client.outcomes, client.problems, error)
