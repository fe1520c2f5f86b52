"""What the service counts, in Prometheus' terms.

Shares are left to whoever reads: a share over a window is a ratio of two counters' increases.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from reward_server.consistency import cycles, flips
from reward_server.pool import Pool
from reward_server.prefix_cache import hit_share
from wire.judgement import GroupVerdict, Verdict

SECONDS = (0.1, 0.3, 1, 3, 10, 20, 30, 60, 120, 300, 900)
TOKENS = (100, 300, 1000, 2000, 4000, 8000, 16000, 32000)


class Instruments:
    """The counters of one service. `pool` is read when the page is asked for."""

    def __init__(self, pool: Pool) -> None:
        self._registry = CollectorRegistry()
        self._verdicts = self._counter("verdicts", "Verdicts given, by outcome: given, or why missing.", "outcome")
        self.unreadable = self._counter("unreadable", "Generations that could not be read.")
        self.joined = self._counter("joined", "Judgements that joined one in flight instead of being asked.")
        self.refused_busy = self._counter("refused_busy", "Requests sent away with HTTP 429, the queue being full.")
        self._comparisons = self._counter("comparisons", "Verdicts given on two responses.")
        self._ties = self._counter("ties", "Comparisons with two equal individual scores.")
        self._contradictions = self._counter("contradictions", "Comparisons whose ranking contradicts the scores.")
        self._neutralised = self._counter("neutralised", "Verdicts on responses that held marks of the judge's format.")
        self._swapped = self._counter("swapped_pairs", "Pairs that one group compared in both orders.")
        self._flips = self._counter("flips", "Of those, pairs whose preference turned with the order.")
        self._triples = self._counter("triples", "Triples of responses that one group compared all with all.")
        self._cycles = self._counter("intransitive", "Of those, triples whose preferences form a cycle.")
        self._seconds = Histogram(
            "reward_verdict_seconds", "Seconds a verdict took.", buckets=SECONDS, registry=self._registry
        )
        self._tokens = Histogram(
            "reward_verdict_tokens", "Tokens written for a verdict.", buckets=TOKENS, registry=self._registry
        )
        self._registry.register(_PoolGauges(pool))

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"reward_{name}", documentation, labels, registry=self._registry)

    def note(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self._verdicts.labels(verdict.missing or "given").inc()
        self._seconds.observe(verdict.seconds)
        self._tokens.observe(verdict.completion_tokens)
        if verdict.neutralised:
            self._neutralised.inc()
        if verdict.ranking is not None:
            self._comparisons.inc()
            self._ties.inc(verdict.ties)
            self._contradictions.inc(verdict.contradicts)

    def note_group(self, group: GroupVerdict) -> None:
        """Count what only a group's verdicts together show."""
        for (found, comparable), count, total in (
            (flips(group.verdicts), self._flips, self._swapped),
            (cycles(group.verdicts), self._cycles, self._triples),
        ):
            count.inc(found)
            total.inc(comparable)

    def page(self) -> bytes:
        """The metrics page in Prometheus' text format."""
        return generate_latest(self._registry)


class _PoolGauges(Collector):
    """The pool's state at the moment of asking."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> list[GaugeMetricFamily]:
        servers = self._pool.servers
        waiting = GaugeMetricFamily("reward_queue_depth", "Calls that wait for a place on a server.")
        waiting.add_metric([], self._pool.num_waiting)
        lost = GaugeMetricFamily("reward_lost_calls", "Calls lost with a server, each counted once.")
        lost.add_metric([], self._pool.lost_calls)
        in_flight = GaugeMetricFamily("reward_in_flight", "Calls a server is at work on.", labels=["server"])
        room = GaugeMetricFamily("reward_room", "Calls a server gets at once, by its load.", labels=["server"])
        ready = GaugeMetricFamily("reward_server_ready", "1 where a server takes calls.", labels=["server"])
        for server in servers:
            in_flight.add_metric([server.url], server.in_flight)
            room.add_metric([server.url], server.room.size)
            ready.add_metric([server.url], server.state == "ready")
        fetch = GaugeMetricFamily("reward_server_fetch_seconds", "Until the files were here.", labels=["server"])
        load = GaugeMetricFamily("reward_server_load_seconds", "From then to the first answer.", labels=["server"])
        for server in servers:
            startup = server.startup
            if startup is not None and startup.fetch_s is not None and startup.load_s is not None:
                fetch.add_metric([server.url], startup.fetch_s)
                load.add_metric([server.url], startup.load_s)
        gauges = [waiting, lost, in_flight, room, ready, fetch, load]
        hits = hit_share([server.cache for server in servers])
        if hits is not None:
            gauges.append(GaugeMetricFamily("reward_prefix_cache_hit_share", "Of the judges' prompts.", value=hits))
        return gauges
