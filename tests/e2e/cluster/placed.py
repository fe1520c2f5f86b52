"""Run on the head: an actor on every node's own resource, one more rollout than there are nodes, one node cut off.

    python -m tests.e2e.cluster.placed

Prints one line of JSON a stage: who is where, by the host's own name and by Ray's address of it, and how long it took.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import ray

from tests.e2e.cluster.door import ask

CALL_S = 5.0
PLACED_S = 120.0
BLIP_S = 1.0
SETTLED_S = 6.0


@ray.remote(num_cpus=0, max_restarts=-1)
class Here:
    """Says where it is."""

    def where(self) -> tuple[str, str]:
        """The host's own name, and Ray's address of it."""
        return socket.gethostname(), ray.util.get_node_ip_address()


def actor(resource: str) -> Any:
    """One actor that takes one of `resource`; pending until a node has it."""
    return Here.options(resources={resource: 1}).remote()


def where(actors: list[Any], deadline_s: float = PLACED_S) -> list[tuple[str, str]]:
    """Where each is, once all answer. A call to a node that is cut off hangs, so each has a deadline."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            return ray.get([each.where.remote() for each in actors], timeout=CALL_S)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def alive(address: str) -> bool:
    """Whether Ray takes the node there for alive."""
    return any(node["Alive"] and node["NodeManagerAddress"] == address for node in ray.nodes())


def timed(stage: str, act: Callable[[], Any]) -> Any:
    """What `act` gives, printed with its seconds."""
    start = time.monotonic()
    found = act()
    print(json.dumps({"stage": stage, "found": found, "seconds": time.monotonic() - start}), flush=True)
    return found


def blip(name: str, address: str) -> bool:
    """A cable that is cut and mended at once: is the node still there afterwards?"""
    ask("cut", name=name)
    time.sleep(BLIP_S)
    ask("restore", name=name)
    time.sleep(SETTLED_S)
    return alive(address)


def noticed(name: str, address: str, deadline_s: float = 60.0) -> bool:
    """A cable that stays cut: does Ray give the node up within the deadline?"""
    ask("cut", name=name)
    end = time.monotonic() + deadline_s
    while alive(address) and time.monotonic() < end:
        time.sleep(0.1)
    return not alive(address)


def main() -> None:
    """All stages, in order."""
    ray.init(address="auto", log_to_driver=False)
    rollouts = [actor("rollout"), actor("rollout")]
    others = [actor("learner"), actor("reward")]
    timed("placed", lambda: where(others + rollouts))
    rollouts.append(actor("rollout"))
    name, address = timed("one more", lambda: where(rollouts))[-1]
    timed("blip", lambda: blip(name, address))
    timed("noticed", lambda: noticed(name, address))
    timed("replaced", lambda: where(rollouts))


if __name__ == "__main__":
    main()
