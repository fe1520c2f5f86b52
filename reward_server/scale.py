"""`python -m reward_server.scale COMMAND --config FILE`: more or fewer GenRM servers while the reward service works.

COMMAND is one of

    N           so many servers of the service's own        add URL       join a running GenRM server
    +N, -N      so many more, or fewer                      remove URL    let a joined one go
    status      only look

A new server gets calls as soon as it answers; one that goes finishes what it has, or hands it over. The first
`judge_servers` are on the service's host; a service with `ray_address` places those beyond wherever the cluster has
room. The service's address is read from a run's `output_dir`, or given as `--reward_url`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from reward_server.client import RewardClient
from reward_server.config import RewardSettings
from reward_server.fetch_state import span
from wire.scaling import take_command, wanted_count, written_address
from wire.settings import parse_settings, run_program
from wire.token import read_token

ADDRESS_FILE = "reward_url"  # in a run's output_dir, while it runs


@dataclass
class RewardScaleSettings(RewardSettings):
    """Which service."""

    output_dir: str = field(
        default="runs/rloo", metadata={"help": "The folder of a run; it names its reward service there."}
    )

    def address(self) -> str:
        """The service's URL.

        Raises:
            ConfigError: no URL was given and no run writes to `output_dir`.
        """
        if self.reward_url is not None:
            return self.reward_url.rstrip("/")
        return written_address(
            self.output_dir,
            ADDRESS_FILE,
            "no run has its reward service's address in {path}: give output_dir, or reward_url, such as "
            "http://127.0.0.1:8100",
        )


async def carry_out(client: RewardClient, command: Sequence[str]) -> dict[str, Any]:
    """Send the command; returns the state of the pool after it was accepted.

    Raises:
        ConfigError: fewer servers than none.
        ServiceError: as `RewardClient.call` does.
    """
    verb = command[0]
    if verb == "status":
        return await client.call("GET", "/v1/servers")
    if verb == "add":
        return await client.call("POST", "/v1/servers", {"url": command[1]})
    if verb == "remove":
        return await client.call("DELETE", f"/v1/servers?url={quote(command[1], safe='')}")
    now = int((await client.call("GET", "/v1/servers"))["count"]) if verb[0] in "+-" else 0
    count = wanted_count(verb, now)
    return await client.call("PUT", "/v1/servers/count", {"count": count})


def lines(state: dict[str, Any]) -> list[str]:
    """The pool as a table for people."""
    rows = [
        f"{server['url']:<32} {server['state']:<9} {'started' if server['started'] else 'joined':<8}"
        f"{server['in_flight']:>6} in flight {server['answers']:>8} answers {server['losses']:>5} losses  "
        f"{_start(server)}".rstrip()
        for server in state["servers"]
    ]
    share = state["prefix_cache_hit_share"]
    hits = "unknown" if share is None else f"{share:.0%}"
    return [*rows, f"{state['count']} of its own, {state['queue_depth']} calls wait, prefix-cache hits {hits}"]


def _start(server: dict[str, Any]) -> str:
    """What it does until it is ready, and then how long it took."""
    if server.get("load_s") is None:
        return str(server.get("doing") or "")
    fetch = f"fetched in {span(server['fetch_s'])}, " if server["fetch_s"] else ""
    return f"{fetch}loaded in {span(server['load_s'])}"


async def _run(settings: RewardScaleSettings, command: Sequence[str]) -> None:
    async with RewardClient(settings.address(), read_token(settings.token_file), timeout_s=30.0) as client:
        print("\n".join(lines(await carry_out(client, command))))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, send, show."""
    command, flags = take_command(sys.argv[1:] if argv is None else argv)
    settings, _ = parse_settings(RewardScaleSettings, flags, strict_file=False)
    asyncio.run(_run(settings, command))


if __name__ == "__main__":
    run_program(main)
