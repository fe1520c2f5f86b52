"""`python -m trainer.orphans [stop] --ray_address auto`: the servers in a cluster that outlive their drivers.

Shows each with its run, and when it ends if no driver comes for it. `stop` ends those whose driver is dead.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from reward_server.placement import KIND as REWARD
from rollout_server.placement import KIND as REPLICA
from wire.claim import RENEW_S, Owner
from wire.errors import ConfigError
from wire.estate import END_TIMEOUT_S, Remnant, claimed, remnants
from wire.hosting import Cluster, end_server
from wire.placement import RayCluster, joined_cluster
from wire.settings import ServiceSettings, parse_settings, run_program

STOP = "stop"


async def lines(cluster: Cluster) -> list[str]:
    """The servers, for people."""
    return [_row(remnant, cluster.is_over(remnant.held.owner)) for remnant in await _all(cluster)] or ["none"]


def _row(remnant: Remnant, is_dead: bool) -> str:
    held = remnant.held
    fate = f"its driver has died, and it ends in {held.ends_in_s:.0f} s" if is_dead else "its driver lives"
    if not is_dead and held.silent_s > 2 * RENEW_S:
        fate = f"its driver has been silent for {held.silent_s:.0f} s, and it ends in {held.ends_in_s:.0f} s"
    return f"{remnant.name:<28} {held.url or 'starts':<28} {held.owner.run}: {fate}"


async def stop(cluster: Cluster, owner: Owner) -> list[str]:
    """End those whose driver is dead, or silent for longer than its lease; a line for each.

    Args:
        cluster: where.
        owner: who ends them, as a driver.
    """
    return [*await asyncio.gather(*(_stop(cluster, owner, remnant) for remnant in await _all(cluster)))] or ["none"]


async def _stop(cluster: Cluster, owner: Owner, remnant: Remnant) -> str:
    if not await claimed(cluster, remnant, owner):
        return f"{remnant}: left, for its driver may live"
    await end_server(cluster, remnant.actor, owner, END_TIMEOUT_S)
    return f"{remnant}: ended"


async def _all(cluster: Cluster) -> list[Remnant]:
    return [remnant for kind in (REPLICA, REWARD) for remnant in await remnants(cluster, kind)]


def command_in(argv: Sequence[str]) -> tuple[str, bool]:
    """(the cluster's address, whether to end what is there).

    Raises:
        ConfigError: no cluster is named, or a flag is none.
    """
    is_stop = list(argv[:1]) == [STOP]
    settings, _ = parse_settings(ServiceSettings, argv[is_stop:], strict_file=False)
    if not settings.ray_address:
        raise ConfigError("ray_address names no cluster: give --ray_address auto, or host:port")
    return settings.ray_address, is_stop


def main() -> None:
    """Parse, join, show or end."""
    ray_address, is_stop = command_in(sys.argv[1:])
    with joined_cluster(ray_address):
        cluster = RayCluster()
        print("\n".join(asyncio.run(stop(cluster, cluster.owner("", 0.0)) if is_stop else lines(cluster))))


if __name__ == "__main__":
    run_program(main)
