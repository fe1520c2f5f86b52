"""How much of the judges' prompts came out of their prefix caches, by vLLM's own counters."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from reward_server.peer import Peer

METRICS_TIMEOUT_S = 5.0
QUERIES, HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"


@dataclass
class PrefixCache:
    """Prompt tokens looked up in a server's prefix cache since it started, and those found there."""

    queries: float = 0.0
    hits: float = 0.0

    async def update(self, peer: Peer) -> None:
        """Read the server's `/metrics`; the last numbers stay where it does not answer."""
        try:
            reply = await peer.get("/metrics", METRICS_TIMEOUT_S)
        except (aiohttp.ClientError, OSError):
            return
        if reply.status == 200:
            # Off the event loop: vLLM's page has thousands of lines.
            self.queries, self.hits = await asyncio.to_thread(read_counters, reply.text)


def read_counters(page: str) -> tuple[float, float]:
    """(queries, hits) of a metrics page in Prometheus' text format, summed over engines."""
    totals = {QUERIES: 0.0, HITS: 0.0}
    for line in page.splitlines():
        name, _, rest = line.partition("{")
        if name in totals:
            with suppress(ValueError):  # a line that another version writes otherwise is no reason to lose the server
                totals[name] += float(rest.rpartition(" ")[2])
    return totals[QUERIES], totals[HITS]


def hit_share(caches: list[PrefixCache]) -> float | None:
    """Share of the tokens that were found, 0..1; None before any was looked up."""
    queries = sum(cache.queries for cache in caches)
    return sum(cache.hits for cache in caches) / queries if queries else None
