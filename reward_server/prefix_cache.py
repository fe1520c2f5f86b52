"""How much of the judges' prompts came out of their prefix caches, by vLLM's own counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

QUERIES, HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"


@dataclass
class PrefixCache:
    """Prompt tokens looked up in a server's prefix cache since it started, and those found there."""

    queries: float = 0.0
    hits: float = 0.0

    def update(self, samples: Mapping[str, list[float]]) -> None:
        """Take the counters from samples of the server's page, summed over engines; those it lacks stay."""
        self.queries = sum(samples.get(QUERIES) or [self.queries])
        self.hits = sum(samples.get(HITS) or [self.hits])


def hit_share(caches: list[PrefixCache]) -> float | None:
    """Share of the tokens that were found, 0..1; None before any was looked up."""
    queries = sum(cache.queries for cache in caches)
    return sum(cache.hits for cache in caches) / queries if queries else None
