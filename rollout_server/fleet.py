"""All replicas together: who belongs, which weights they hold, and how a push reaches every one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp

from wire.errors import ServiceError, Unauthorized
from wire.generation import PolicyVersion
from wire.token import auth_headers

PROBE_TIMEOUT_S = 30.0


@dataclass
class Replica:
    """A member of the fleet. `world_size` is its number of workers (tensor parallel); `version` what it last took."""

    url: str
    world_size: int
    version: PolicyVersion | None = None


class WeightSender(Protocol):
    """The learner as the fleet sees it."""

    async def open_transfer(self, members: Sequence[tuple[str, int]]) -> None:
        """Form the transfer group with `(url, world_size)` members."""

    async def send_weights(self, version: PolicyVersion) -> None:
        """Push the current weights to all members, labelled `version`."""


class Fleet:
    """The replicas of a run.

    Args:
        urls: base URLs.
        token: the run's access token.
        transfer_timeout_s: deadline of each step of a push.
        skip_push: a test's switch: pushes after the first only move the label, not the weights.
    """

    def __init__(self, urls: Sequence[str], token: str, transfer_timeout_s: float, *, skip_push: bool = False) -> None:
        self._urls, self._token, self._timeout_s, self._skip_push = list(urls), token, transfer_timeout_s, skip_push
        self.replicas: list[Replica] = []
        self._group: tuple[tuple[str, int], ...] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=auth_headers(self._token), timeout=aiohttp.ClientTimeout(total=self._timeout_s)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def probe(self) -> None:
        """Ask every replica for its world size; they are members from then on.

        Raises:
            ServiceError: one does not answer within 30 s; the message names it.
            Unauthorized: one refuses the token.
        """
        replies = await self._all("GET", "get_world_size", self._urls, timeout_s=PROBE_TIMEOUT_S)
        self.replicas = [Replica(url, int(reply["world_size"])) for url, reply in zip(self._urls, replies, strict=True)]

    def ready(self) -> list[str]:
        """URLs of the replicas that hold the newest version pushed."""
        held = [replica.version for replica in self.replicas if replica.version is not None]
        newest = max(held, default=None)
        return [replica.url for replica in self.replicas if newest is not None and replica.version == newest]

    async def publish(self, sender: WeightSender, version: PolicyVersion) -> None:
        """Bring every replica to `version`: pause (requests are kept), transfer, resume.

        The transfer group is built anew only when the members differ from the last time. Requests in flight go on
        with the new weights; the spans of their tokens say so.

        Raises:
            ServiceError: a replica or the transfer failed, or missed its deadline.
        """
        urls = [replica.url for replica in self.replicas]
        if self._skip_push and all(replica.version is not None for replica in self.replicas):
            await self._all("POST", "update_weight_version", urls, json={"new_version": version.label})
        else:
            await self._push(sender, version, urls)
        for replica in self.replicas:
            replica.version = version

    async def _push(self, sender: WeightSender, version: PolicyVersion, urls: list[str]) -> None:
        members = tuple((replica.url, replica.world_size) for replica in self.replicas)
        if members != self._group:
            await sender.open_transfer(members)
            self._group = members
        try:
            await self._all("POST", "pause", urls, params={"mode": "keep", "clear_cache": "false"})
            await sender.send_weights(version)
        except BaseException:
            # Half-loaded weights: whatever the server says, its version is unknown until a push is whole.
            self._group = None
            for replica in self.replicas:
                replica.version = None
            raise
        finally:
            await self._all("POST", "resume", urls)

    async def versions(self) -> list[str]:
        """What each replica itself says it holds."""
        replies = await self._all("GET", "weight_info", [replica.url for replica in self.replicas])
        return [str(reply["weight_version"]) for reply in replies]

    async def _all(
        self, method: str, route: str, urls: Sequence[str], *, timeout_s: float | None = None, **request: Any
    ) -> list[Any]:
        calls = (self._call(method, f"{url}/{route}", timeout_s or self._timeout_s, request) for url in urls)
        return await asyncio.gather(*calls)

    async def _call(self, method: str, url: str, timeout_s: float, request: dict[str, Any]) -> Any:
        assert self._session is not None
        deadline = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, url, timeout=deadline, **request) as reply:
                if reply.status == 401:
                    raise Unauthorized(f"{url} refuses the token: give both sides the same token_file")
                if reply.status != 200:
                    raise ServiceError(f"{url} answered HTTP {reply.status}: {(await reply.text())[:300]}")
                return await reply.json()
        except TimeoutError as error:
            raise ServiceError(f"{url} did not answer within {timeout_s:.0f} s") from error
        except aiohttp.ClientError as error:
            raise ServiceError(f"{url}: {error or type(error).__name__}") from error
