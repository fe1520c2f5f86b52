"""How loaded a vLLM server says it is, and how many requests it is to have at once because of that. Torch-free.

    page of /metrics -- Load.read --> Load -- Room.look --> places on the server

What a server cannot begin waits in the server's own queue: bound to it, though another one may be free, and lost with
it. And what it began beyond its KV cache it preempts, and computes anew later. So a server is to have as many requests
as its cache holds, which depends on their lengths and is nobody's setting. The search is TCP's, additive increase and
multiplicative decrease (Jacobson, "Congestion Avoidance and Control", SIGCOMM 1988), with requests for segments and
the engine's queue for the router's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
USAGE, PREEMPTIONS = "vllm:kv_cache_usage_perc", "vllm:num_preemptions_total"

LOOK_INTERVAL_S = 2.0  # between two looks at a server's figures
CUT = 0.8  # share of the requests in flight that one cut leaves at the least
RAISE = 0.01  # of the largest room, and at least one request: what a look without strain adds
SPARE_USAGE = 0.9  # share of the KV cache beyond which a room does not grow: what is in flight still grows itself


def read_samples(page: str, names: Iterable[str]) -> dict[str, list[float]]:
    """Values of the metrics `names` on a page in Prometheus' text format, one for each engine of the server.

    A metric that the page does not have has no values; nor has a line that cannot be read: another version of vLLM
    may write others, and that is no reason to lose the server. Lines are searched for, not read one by one: the page
    has many hundreds of them.
    """
    page = f"\n{page}\n"
    found: dict[str, list[float]] = {}
    for name in names:
        values, start = found.setdefault(name, []), 0
        while (start := page.find(f"\n{name}", start)) >= 0:
            start += 1 + len(name)
            # What follows the name ends it; else it is the beginning of a longer one.
            if page[start] in "{ ":
                value = page[start : page.index("\n", start)].rpartition(" ")[2]
                try:
                    values.append(float(value))
                except ValueError:
                    continue
    return found


@dataclass(frozen=True)
class Load:
    """What a server says of itself; of several engines behind one address, their sums and the fullest cache.

    `running` and `waiting` are requests, `preemptions` counts since the server's start, `kv_usage` is a share of 0..1.
    Example: Load(running=4.0, waiting=116.0, preemptions=31.0, kv_usage=0.96).
    """

    running: float
    waiting: float
    preemptions: float
    kv_usage: float

    @classmethod
    def read(cls, page: str) -> Load | None:
        """The load on a page of `/metrics`; None where it does not say."""
        return cls.of(read_samples(page, (RUNNING, WAITING, PREEMPTIONS, USAGE)))

    @classmethod
    def of(cls, samples: Mapping[str, list[float]]) -> Load | None:
        """The load by `read_samples`; None where one of the four is missing."""
        running, waiting, preemptions, usage = (samples.get(name) for name in (RUNNING, WAITING, PREEMPTIONS, USAGE))
        if not (running and waiting and preemptions and usage):
            return None
        return cls(sum(running), sum(waiting), sum(preemptions), max(usage))


class Room:
    """How many requests one server is to have at once, from `least` to `most`; `size` is the number, `most` at first.

    At each look:

    - It was *strained* when it preempted since the last look, or when its queue was no remainder at this look nor at
      the last one and it runs no more than it did. A queue alone says little: an engine that reads many new prompts
      has one for as long as that takes, and runs more at every look.
    - Strained, and what is in flight has come down to the room: the room is cut by what was too much, which is what
      was preempted or what queues, but to no less than `CUT` of what is in flight. While more is in flight than the
      room allows, the last cut has not shown its effect yet, and nothing new is sent anyway.
    - Else, where the room is full, nothing waits, and the cache is not nearly full: the room grows by `RAISE`.
    - Else it stays. A server that is not asked for more says nothing about how much more it could have.

    Args:
        least: requests that come together, which one server gets whole: a prompt's K completions. The last ones may
            exceed the room, so a queue of fewer than `least` is a remainder.
        most: the largest room.
    """

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = min(least, most), most
        self.size = most
        self._last: tuple[Load, int] | None = None

    def look(self, load: Load, in_flight: int) -> int:
        """Adapt to what the server says, with `in_flight` requests of ours on it; returns the new size."""
        before, self._last = self._last, (load, in_flight)
        if before is None:
            return self.size
        last, had = before
        queues = load.waiting >= self.least
        preempted = max(0.0, load.preemptions - last.preemptions)  # less than before: the server was started again
        blocked = queues and last.waiting >= self.least and load.running <= last.running
        if preempted or blocked:
            if in_flight < self.size + self.least:
                # What was too much may be written by now: it was among what was in flight then.
                self._cut(load, min(self.size, max(in_flight, had)), max(preempted, load.waiting if blocked else 0.0))
        elif in_flight >= self.size and not queues and load.kv_usage < SPARE_USAGE:
            self.size = min(self.most, self.size + max(1, round(RAISE * self.most)))
        return self.size

    def _cut(self, load: Load, base: int, surplus: float) -> None:
        # Other clients may use the server too: of what it has too much, ours is the share that we have of all it has.
        ours = min(1.0, base / max(1.0, load.running + load.waiting))
        size = base - max(1, round(ours * surplus))
        self.size = min(self.size, max(self.least, int(CUT * base), size))
