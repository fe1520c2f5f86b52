"""Room in a cluster for a part of the run: it is waited for, and what is missing is said. Ray-free.

`wire/placement.py` asks Ray for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wire.waits import waiting

Resources = Mapping[str, float]  # by name: GPU, learner, ...
Cluster = Callable[[], tuple[Resources, Resources]]  # in all, and free; it may block

POLL_S = 1.0
SAY_AFTER_S = 10.0  # a cluster with room gives it in less
LOOK_AGAIN_S = 15.0
HAS_NO_ROOM = "has no room"


@dataclass(frozen=True)
class Needs:
    """What `part` needs: `num` places with `each` on one node, such as 8 x {GPU: 1, learner: 1}."""

    part: str
    each: Resources
    num: int = 1

    def __str__(self) -> str:
        each = ", ".join(f"{name}: {amount:g}" for name, amount in sorted(self.each.items()))
        return f"{self.num} x {{{each}}}"

    def missing(self, total: Resources, free: Resources) -> str:
        """Which resource there is too little of, for people."""
        rows = [
            f"{name} ({free.get(name, 0.0):g} of {total.get(name, 0.0):g} free)"
            for name, amount in sorted(self.each.items())
            if free.get(name, 0.0) < amount * self.num
        ]
        return ", ".join(rows) or "nothing in the sum, but no node has it all free at one time"


async def until_found(
    needs: Needs, is_found: Callable[[float], bool], cluster: Cluster, say: Callable[[str], None]
) -> None:
    """Return when there is room. Where it takes long, the wait names what is missing, and `say` is told of it.

    Args:
        needs: what is asked for.
        is_found: whether there is room, waited for at most so many seconds; it blocks.
        cluster: its resources.
        say: told once, and when what is missing has changed.
    """
    end = time.monotonic() + SAY_AFTER_S
    while not await asyncio.to_thread(is_found, min(POLL_S, SAY_AFTER_S)):
        if time.monotonic() >= end:
            await _named_wait(needs, is_found, cluster, say)
            say(f"room for {needs.part} was found")
            return


async def _named_wait(
    needs: Needs, is_found: Callable[[float], bool], cluster: Cluster, say: Callable[[str], None]
) -> None:
    said, looked = "", -LOOK_AGAIN_S
    with waiting("ray", HAS_NO_ROOM) as wait:
        while True:
            if time.monotonic() - looked >= LOOK_AGAIN_S:
                missing, looked = needs.missing(*await asyncio.to_thread(cluster)), time.monotonic()
                wait.peer = f"ray for {needs.part}: {needs} needed, missing {missing}"
                if missing != said:
                    say(f"no room yet for {needs.part}: it needs {needs}; missing: {missing}")
                    said = missing
            if await asyncio.to_thread(is_found, min(POLL_S, SAY_AFTER_S)):
                return
