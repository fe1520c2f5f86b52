"""The reward service in the cluster's registry: announced while it serves, and found by runs that name none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import aiohttp

from reward_server.config import RewardSettings
from wire.registry import REWARD, Facts

PROBE_TIMEOUT_S = 5.0


def facts_of(settings: RewardSettings) -> Facts:
    """What a run and a service must have in common."""
    names = ("judge_model_name_or_path", "judge_revision", "judge_dialect", "deterministic")
    return {name: getattr(settings, name) for name in names}


@contextmanager
def announced(settings: RewardSettings, url: str) -> Iterator[None]:
    """The service at `url` is in the registry while the context is open, where `ray_address` names a cluster, and
    unless `reward_announce` is off."""
    if not settings.ray_address or not settings.reward_announce:
        yield
        return
    from wire.placement import announcer

    with announcer(REWARD, url, facts_of(settings)):
        yield


async def answers(url: str) -> bool:
    """Whether the service at `url` is ready, asked within PROBE_TIMEOUT_S."""
    try:
        deadline = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=deadline) as session, session.get(f"{url}/health") as reply:
            return reply.status == 200
    except (aiohttp.ClientError, OSError):  # a TimeoutError is an OSError
        return False


async def choose(
    found: Mapping[str, Facts],
    wanted: Facts,
    say: Callable[[str], None],
    is_ready: Callable[[str], Awaitable[bool]] = answers,
) -> str | None:
    """The first of the announced services that judges as `wanted` and is ready; None where there is none.

    `say` is told which it is, and why another was not taken.
    """
    for url, facts in found.items():
        other = ", ".join(f"{name} {facts.get(name)!r}" for name in wanted if facts.get(name) != wanted[name])
        if other:
            say(f"found in the cluster, and not joined: reward service {url} has {other}")
        elif not await is_ready(url):
            say(f"found in the cluster, and not joined: reward service {url} does not answer")
        else:
            say(f"found in the cluster: reward service {url}")
            return url
    return None
