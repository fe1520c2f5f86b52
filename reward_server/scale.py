"""`python -m reward_server.scale COMMAND --config FILE --reward_url URL`: more or fewer GenRM servers while it serves.

COMMAND is one of

    N           so many servers of the service's own        add URL       join a running GenRM server
    +N, -N      so many more, or fewer                      remove URL    let a joined one go
    status      only look

A new server gets calls as soon as it answers; one that goes finishes what it has, or hands it over.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from reward_server.client import RewardClient
from reward_server.config import RewardSettings
from wire.errors import ConfigError
from wire.scaling import take_command, wanted_count
from wire.settings import parse_settings, run_program
from wire.token import read_token


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
        f"{server['in_flight']:>6} in flight {server['answers']:>8} answers {server['losses']:>5} losses"
        for server in state["servers"]
    ]
    share = state["prefix_cache_hit_share"]
    hits = "unknown" if share is None else f"{share:.0%}"
    return [*rows, f"{state['count']} of its own, {state['queue_depth']} calls wait, prefix-cache hits {hits}"]


async def _run(settings: RewardSettings, command: Sequence[str]) -> None:
    assert settings.reward_url is not None
    async with RewardClient(settings.reward_url, read_token(settings.token_file), timeout_s=30.0) as client:
        print("\n".join(lines(await carry_out(client, command))))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, send, show."""
    command, flags = take_command(sys.argv[1:] if argv is None else argv)
    settings, _ = parse_settings(RewardSettings, flags, strict_file=False)
    if settings.reward_url is None:
        raise ConfigError("reward_url is not set; name the service, such as --reward_url http://127.0.0.1:8100")
    asyncio.run(_run(settings, command))


if __name__ == "__main__":
    run_program(main)
