"""`python -m rollout_server.scale COMMAND --config FILE`: more or fewer replicas while the run trains.

COMMAND is one of

    N           so many replicas of the run's own        add URL       a running replica joins
    +N, -N      so many more, or fewer                   remove URL    a joined one leaves
    status      only look                            checksums  whether all hold the same weights, to the bit

A new replica takes the live weights before its first prompt; one that goes finishes what it writes, or hands it over.
The run's address is read from `output_dir`, or given as `--fleet_url`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from rollout_server.config import RolloutSettings
from wire.errors import ConfigError, ServiceError, Unauthorized
from wire.scaling import take_command, wanted_count, written_address
from wire.settings import parse_settings, run_program
from wire.token import auth_headers, read_token

ADDRESS_FILE = "fleet_url"  # in a run's output_dir, while it runs
CALL_TIMEOUT_S = 30.0
CHECKSUMS = "checksums"
CHECKSUMS_TIMEOUT_S = 600.0  # a push may be under way before them


@dataclass
class ScaleSettings(RolloutSettings):
    """Which run's fleet."""

    fleet_url: str | None = field(default=None, metadata={"help": "The control API of a run's fleet."})
    output_dir: str = field(default="runs/rloo", metadata={"help": "The run's folder; it names its fleet there."})

    def address(self) -> str:
        """The control API's URL.

        Raises:
            ConfigError: no URL was given and no run writes to `output_dir`.
        """
        if self.fleet_url is not None:
            return self.fleet_url.rstrip("/")
        missing = "no run has its fleet's address in {path}: give output_dir, or fleet_url"
        return written_address(self.output_dir, ADDRESS_FILE, missing)


class FleetClient:
    """Calls to the control API, each with a deadline."""

    def __init__(self, url: str, token: str, session: aiohttp.ClientSession) -> None:
        self._url, self._headers, self._session = url, auth_headers(token), session

    async def call(
        self, method: str, route: str, *, timeout_s: float = CALL_TIMEOUT_S, **request: Any
    ) -> dict[str, Any]:
        """The answer.

        Raises:
            ConfigError: the API refused what was asked.
            ServiceError: it did not answer within `timeout_s`, or failed.
            Unauthorized: it refused the token.
        """
        where, deadline = f"{self._url}{route}", aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, where, headers=self._headers, timeout=deadline, **request
            ) as reply:
                body: dict[str, Any] = await reply.json()
        except TimeoutError as error:
            raise ServiceError(f"{where} did not answer within {timeout_s:.0f} s") from error
        except aiohttp.ClientError as error:
            raise ServiceError(f"{where}: {error or type(error).__name__}; does the run still go on?") from error
        if reply.status == 401:
            raise Unauthorized(f"{where} refuses the token: give both sides the same token_file")
        if reply.status != 200:
            raise (ConfigError if reply.status == 400 else ServiceError)(str(body.get("error")))
        return body


async def carry_out(client: FleetClient, command: Sequence[str]) -> dict[str, Any]:
    """Send the command; returns the state of the fleet after it was accepted.

    Raises:
        ConfigError: fewer replicas than none.
        ServiceError: as `FleetClient.call` does.
    """
    verb = command[0]
    if verb == CHECKSUMS:
        return await client.call("GET", "/v1/checksums", timeout_s=CHECKSUMS_TIMEOUT_S)
    if verb == "status":
        return await client.call("GET", "/v1/replicas")
    if verb == "add":
        return await client.call("POST", "/v1/replicas", json={"url": command[1]})
    if verb == "remove":
        return await client.call("DELETE", "/v1/replicas", params={"url": command[1]})
    now = int((await client.call("GET", "/v1/replicas"))["count"]) if verb[0] in "+-" else 0
    return await client.call("PUT", "/v1/replicas/count", json={"count": wanted_count(verb, now)})


def compared(checksums: dict[str, dict[str, str]]) -> list[str]:
    """What the replicas' checksums say, for people: by replica, in how many tensors it differs from the first."""
    first = next(iter(checksums.values()), {})
    rows = []
    for url, sums in checksums.items():
        differing = sorted(name for name in first.keys() | sums.keys() if first.get(name) != sums.get(name))
        rows.append(f"{url:<32} {'the same' if not differing else 'differs in ' + ', '.join(differing)}")
    return [*rows, f"{len(checksums)} replicas, {len(first)} tensors"]


def lines(state: dict[str, Any]) -> list[str]:
    """The fleet as a table for people."""
    if "checksums" in state:
        return compared(state["checksums"])
    rows = []
    for replica in state["replicas"]:
        origin = "started" if replica["started"] else "joined"
        row = f"{replica['url']:<32} {replica['state']:<9} {origin:<8} version {replica.get('version') or '-':<8}"
        rows.append(f"{row}{replica.get('in_flight', 0):>5} in flight  {replica.get('reason', '')}".rstrip())
    counts = ", ".join(f"{number} {name}" for name, number in sorted(state["counts"].items()))
    summary = f"{state['count']} of the run's own, epoch {state['epoch']}, live version {state['version'] or 'none'}"
    return [*rows, f"{summary}{'; ' if counts else ''}{counts}"]


async def _run(settings: ScaleSettings, command: Sequence[str]) -> None:
    async with aiohttp.ClientSession() as session:
        client = FleetClient(settings.address(), read_token(settings.token_file), session)
        print("\n".join(lines(await carry_out(client, command))))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, send, show."""
    command, flags = take_command(sys.argv[1:] if argv is None else argv, CHECKSUMS)
    settings, _ = parse_settings(ScaleSettings, flags, strict_file=False)
    asyncio.run(_run(settings, command))


if __name__ == "__main__":
    run_program(main)
