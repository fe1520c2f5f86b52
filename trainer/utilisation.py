"""How busy each part was between two steps, from who waited for whom.

    util/replicas  = mean over the replicas of  (time with at least one request in flight) / (time)
    util/judge     = (time with at least one verdict in the making) / (time)
    util/learner   = mean over the ranks of  (time in steps and no-grad passes) / (time)
    util/*_in_flight = (sum of the requests' times) / (time): the mean number in flight

Seen from the driver: what waits in a server's own queue counts as in flight there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from trainer.ranks import ACCUMULATES, SCORES, STEPS
from wire.waits import WAITS, Wait, Waits

REPLICA, JUDGE, LEARNER = "replicas", "judge", "learner"
WORK = {  # the kind of peer and why it is waited for, where that means that it is at work -> the part
    ("replica", "writes"): REPLICA,
    ("judge", "judges"): JUDGE,
    ("genrm", "judges"): JUDGE,
    ("learner", STEPS): LEARNER,
    ("learner", ACCUMULATES): LEARNER,
    ("learner", SCORES): LEARNER,
}


class Busy:
    """Intervals of one thing, which come in the order of their ends; seconds.

    `total` is the sum of their lengths, `union` the time in which there was at least one.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._apart: list[tuple[float, float]] = []  # the union as intervals that do not touch, in order

    def add(self, start: float, end: float) -> None:
        """One interval more, which ends no earlier than those before."""
        self.total += end - start
        while self._apart and self._apart[-1][1] >= start:
            start = min(start, self._apart.pop()[0])
        self._apart.append((start, end))

    @property
    def union(self) -> float:
        """Seconds in which at least one interval lies."""
        return sum(end - start for start, end in self._apart)


class Utilisation:
    """Adds up the waits of one window after the other. Times are those of the loop's clock.

    Args:
        now: when the first window begins.
        replicas: names the replicas that belong to the fleet now, as peers ("replica http://..."), so that one that
            was asked for nothing counts as idle; by default, those that ever wrote.
        waits: where those are that are not over.
    """

    def __init__(self, now: float, replicas: Callable[[], Iterable[str]] | None = None, waits: Waits = WAITS) -> None:
        self._since, self._replicas, self._waits = now, replicas, waits
        self._busy: defaultdict[str, dict[str, Busy]] = defaultdict(dict)  # by part and peer
        self._ever: dict[str, set[str]] = {REPLICA: set(), LEARNER: set()}

    def hear(self, wait: Wait, end: float) -> None:
        """Count a wait that ended at `end`: what of it lies in the window."""
        kind, _, which = wait.peer.partition(" ")
        part = WORK.get((kind, wait.reason)) if which else None  # the learner as a whole may only have a queue
        start = max(wait.since, self._since)
        if part is None or end < start:
            return
        # The judge is one part: which of its servers makes a verdict is known only when it is there.
        peer = JUDGE if part == JUDGE else wait.peer
        self._busy[part].setdefault(peer, Busy()).add(start, end)

    def drain(self, now: float) -> dict[str, float]:
        """The metrics of the window that ends `now`, with the waits that are still open; the next one begins."""
        for wait in self._waits.current:
            self.hear(wait, now)
        seconds, busy = now - self._since, self._busy
        self._since, self._busy = now, defaultdict(dict)
        if seconds <= 0:
            return {}
        for part in self._ever:
            self._ever[part] |= busy[part].keys()
        replicas = self._ever[REPLICA] if self._replicas is None else {*self._replicas(), *busy[REPLICA]}
        found = {
            "util/judge": _share(busy[JUDGE], [JUDGE], seconds),
            "util/judge_in_flight": _in_flight(busy[JUDGE], seconds),
            "util/replicas_in_flight": _in_flight(busy[REPLICA], seconds),
        }
        if replicas:
            found |= {"util/replicas": _share(busy[REPLICA], replicas, seconds)}
        if ranks := self._ever[LEARNER]:
            found |= {"util/learner": _share(busy[LEARNER], ranks, seconds)}
        return found


def _share(busy: dict[str, Busy], peers: Iterable[str], seconds: float) -> float:
    shares = [busy[peer].union / seconds if peer in busy else 0.0 for peer in peers]
    return sum(shares) / len(shares)


def _in_flight(busy: dict[str, Busy], seconds: float) -> float:
    return sum(one.total for one in busy.values()) / seconds
