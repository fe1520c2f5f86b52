"""The driver's calls to a replica that are not generation: probe, pause, resume, versions. Each has a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

from rollout_server.membership import Replica
from wire.errors import ServiceError, Unauthorized
from wire.membership import BOOT_HEADER, Outcome
from wire.token import auth_headers

# A replica's server closes a connection that was idle for 5 s. A call that goes out on one just then breaks, and looks
# like the replica's death.
KEEPALIVE_S = 3.0


class CallFailed(ServiceError):
    """A replica did not do what was asked; `outcome` says whether it lives."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class ControlRoutes:
    """vLLM's control routes of all replicas.

    Args:
        token: the run's access token.

    Every call raises CallFailed, or Unauthorized where the token is refused; the message names the URL.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=auth_headers(self._token),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def meet(self, url: str, timeout_s: float) -> tuple[int, str]:
        """(number of workers, boot id) of the server at `url`, whoever it is; its engine has answered too."""
        reply, boot_id = await self._call("GET", url, "get_world_size", timeout_s)
        await self._call("GET", url, "is_paused", timeout_s)
        return int(reply["world_size"]), boot_id

    async def empty(self, url: str, timeout_s: float) -> None:
        """Make the server at `url` as it was when it started: whoever used it is not heard any more, what it asked for
        is not written, and nobody's weights are served. Each of the calls has the deadline: an engine that takes
        weights from a sender who has died answers when it has given up."""
        _, boot_id = await self._call("POST", url, "gate", timeout_s)
        abort = {"mode": "abort", "clear_cache": "true"}
        await self._call("POST", url, "pause", timeout_s, boot_id=boot_id, params=abort)
        await self._call("POST", url, "resume", timeout_s, boot_id=boot_id)

    async def probe(self, replica: Replica, timeout_s: float) -> None:
        """Whether its engine answers. vLLM's `/health` is answered by the API process alone, also where the engine is
        frozen; this route asks the engine's scheduler."""
        await self._call("GET", replica.url, "is_paused", timeout_s, boot_id=replica.boot_id)

    async def pause(self, replica: Replica, timeout_s: float, *, keep: bool) -> None:
        """Stop generating. `keep` freezes the requests; without it they are written to their ends first."""
        params = {"mode": "keep", "clear_cache": "false"} if keep else {"mode": "wait", "clear_cache": "true"}
        await self._call("POST", replica.url, "pause", timeout_s, boot_id=replica.boot_id, params=params)

    async def resume(self, replica: Replica, timeout_s: float) -> None:
        """Go on generating."""
        await self._call("POST", replica.url, "resume", timeout_s, boot_id=replica.boot_id)

    async def relabel(self, replica: Replica, label: str, timeout_s: float) -> None:
        """Stamp tokens with another version's label, weights unchanged. A test's route."""
        body = {"new_version": label}
        await self._call("POST", replica.url, "update_weight_version", timeout_s, boot_id=replica.boot_id, json=body)

    async def version(self, replica: Replica, timeout_s: float) -> str:
        """The label that the server itself says it holds."""
        reply, _ = await self._call("GET", replica.url, "weight_info", timeout_s, boot_id=replica.boot_id)
        return str(reply["weight_version"])

    async def checksums(self, replica: Replica, timeout_s: float) -> dict[str, str]:
        """vLLM's checksum of each tensor that the server's workers hold, by name."""
        body = {"action": "checksum"}
        reply, _ = await self._call(
            "POST", replica.url, "weight_checker", timeout_s, boot_id=replica.boot_id, json=body
        )
        found: dict[str, str] = reply["checksums"]
        return found

    async def _call(
        self, method: str, url: str, route: str, timeout_s: float, *, boot_id: str = "", **request: Any
    ) -> tuple[Any, str]:
        """(the answer, the boot id of who gave it)."""
        assert self._session is not None
        where = f"{url}/{route}"
        headers = {BOOT_HEADER: boot_id} if boot_id else {}
        deadline = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, where, timeout=deadline, headers=headers, **request) as reply:
                if reply.status == 401:
                    raise Unauthorized(f"{where} refuses the token: give both sides the same token_file")
                found = reply.headers.get(BOOT_HEADER, "")
                if boot_id and found != boot_id:  # the former self, whom the call was meant for, is gone
                    raise CallFailed(Outcome.GONE, f"{url} was started again")
                if reply.status != 200:
                    text = (await reply.text())[:300]
                    raise CallFailed(Outcome.FAILED, f"{where} answered HTTP {reply.status}: {text}")
                return await reply.json(), found
        except TimeoutError as error:
            raise CallFailed(Outcome.SILENT, f"{where} did not answer within {timeout_s:.3g} s") from error
        except aiohttp.ClientError as error:
            raise CallFailed(Outcome.GONE, f"{where}: {error or type(error).__name__}") from error


async def on_all(replicas: Sequence[Replica], calls: Sequence[Any]) -> dict[str, CallFailed]:
    """Wait for a call to each replica; what failed, by URL."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    failed: dict[str, CallFailed] = {}
    for replica, result in zip(replicas, results, strict=True):
        if isinstance(result, CallFailed):
            failed[replica.url] = result
        elif isinstance(result, BaseException):
            raise result
    return failed
