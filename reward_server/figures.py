"""What a GenRM server says of itself on vLLM's `/metrics`: one read for its load and for its prefix cache."""

from __future__ import annotations

import aiohttp

from reward_server.peer import Peer
from reward_server.prefix_cache import HITS, QUERIES
from wire.load import PREEMPTIONS, RUNNING, USAGE, WAITING, read_samples

METRICS_TIMEOUT_S = 5.0
NAMES = (RUNNING, WAITING, PREEMPTIONS, USAGE, QUERIES, HITS)


async def read_figures(peer: Peer) -> dict[str, list[float]]:
    """The server's samples of `NAMES`, see `wire.load.read_samples`; empty where it does not answer."""
    try:
        reply = await peer.get("/metrics", METRICS_TIMEOUT_S)
    except (aiohttp.ClientError, OSError):
        return {}
    return read_samples(reply.text, NAMES) if reply.status == 200 else {}
