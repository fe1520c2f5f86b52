"""`python -m benchmarks.fleet`: what a fleet of hundreds of replicas costs the driver.

The driver's own code (`Fleet`, `RolloutClient`, and `FleetSyncClient`, which in a run lives in the learner's process)
against stand-in replicas on loopback ports, all in one other process. Every figure is CPU time of this process, which
other processes' work does not enter:

    membership_ms      a replica comes (is met, catches up with the live version, writes) or dies (a request to it
                       breaks, the fleet asks who lives, and parts with it): the mean of the two, as it is in a run
                       with its rounds of probes
    push_control_ms    one push to all, the transfer itself left out: pause, start, update, finish, resume for each,
                       with the group that is open; `open_ms` in the details is what a new group costs on top
    routing_us         a completion's part of finding a replica for its prompt (four completions) and of the
                       bookkeeping, up to the HTTP call and after it
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from statistics import mean, median
from typing import Any

from benchmarks.standin_fleet import StandInFleet, StandInSender
from rollout_server.client import Order, RolloutClient, Sampling
from rollout_server.config import RolloutSettings
from rollout_server.fleet import Fleet
from rollout_server.membership import Replica, State
from wire.generation import Completion, PolicyVersion, VersionSpan

TOKEN = "benchmark"
DEADLINE_S = 60.0
K = 4
SPANS = (VersionSpan("0.1", 0, 1),)


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--replicas", type=int, default=256, help="Replicas of the fleet.")
    parser.add_argument("--completions", type=int, default=20_000, help="Completions to route.")
    parser.add_argument("--in_flight", type=int, default=4096, help="Prompts in flight while they are routed.")
    parser.add_argument("--repeats", type=int, default=5, help="Pushes, losses and joins; the median counts.")
    parser.add_argument("--profile", help="File for cProfile's statistics; the figures then mislead.")
    return parser.parse_args()


class Timed:
    """CPU milliseconds of this process by what was done."""

    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = {}

    async def of(self, name: str, work: Awaitable[Any]) -> None:
        """Do it and note what it took."""
        gc.collect()  # what earlier work left behind is not this work's
        cpu, wall = time.process_time(), time.perf_counter()
        await work
        self.ms.setdefault(name, []).append(1e3 * (time.process_time() - cpu))
        print(f"{name}  cpu_ms {self.ms[name][-1]:.1f}  wall_ms {1e3 * (time.perf_counter() - wall):.1f}", flush=True)

    def median(self, name: str) -> float:
        """The median of its times."""
        return median(self.ms[name])


@asynccontextmanager
async def tended(fleet: Fleet) -> AsyncIterator[None]:
    """The fleet looks after itself meanwhile."""
    task = asyncio.create_task(fleet.tend())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(fleet: Fleet, is_so: Callable[[], bool]) -> None:
    """Wait until a change of the fleet makes it so."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await fleet.changed(DEADLINE_S)


async def changes(fleet: Fleet, standins: StandInFleet, timed: Timed, repeats: int) -> None:
    """The last replica dies and comes back, `repeats` times."""
    last = len(standins.urls) - 1
    url = standins.urls[last]

    def state() -> State | None:
        known = fleet.membership.find(url)
        return known.state if known else None

    async def lose(replica: Replica) -> None:
        async with tended(fleet):
            fleet.suspect(replica)
            await until(fleet, lambda: state() is State.LOST)

    async def join() -> None:
        await fleet.add(url)
        async with tended(fleet):
            await until(fleet, lambda: state() is State.READY)

    for _ in range(repeats):
        replica = fleet.membership.find(url)
        assert replica is not None
        await standins.take(last)
        await timed.of("loss", lose(replica))
        await standins.give(last)
        await timed.of("join", join())


class RoutedClient(RolloutClient):
    """The client without its HTTP call: a prompt's completions are there after a turn of the loop."""

    async def _stream(
        self,
        replica: Replica,
        futures: Sequence[asyncio.Future[Completion]],
        order: Order,
        *,
        first: int = 0,
    ) -> None:
        await asyncio.sleep(0)
        for index, future in enumerate(futures):
            future.set_result(Completion(first + index, (1,), (-0.1,), True, SPANS, replica.url))


async def route(fleet: Fleet, num_prompts: int, in_flight: int, room: int) -> None:
    """Ask for all prompts' completions."""
    places = asyncio.Semaphore(in_flight)
    sampling = Sampling(max_tokens=16, temperature=1.0, stop_token_ids=(2,))

    async def prompt(rollouts: RolloutClient, seed: int) -> None:
        async with places, rollouts.generate((5, 6, 7), K, seed=seed, salt=lambda: "0.1") as futures:
            await asyncio.gather(*futures)

    async with RoutedClient(fleet, TOKEN, sampling, DEADLINE_S, room=room) as rollouts:
        await asyncio.gather(*(prompt(rollouts, seed) for seed in range(num_prompts)))


async def measure(flags: argparse.Namespace) -> dict[str, float]:
    """All figures."""
    settings, timed, sender = RolloutSettings(device="cpu"), Timed(), StandInSender(TOKEN)
    async with StandInFleet(flags.replicas) as standins, Fleet(settings, TOKEN) as fleet:
        await timed.of("meet_all", asyncio.gather(*(fleet.add(url) for url in standins.urls)))
        await timed.of("first_push", fleet.publish(sender, PolicyVersion(0, 0)))
        for step in range(1, flags.repeats + 1):
            await timed.of("push", fleet.publish(sender, PolicyVersion(0, step)))
        for _ in range(flags.repeats):
            members = [replica.member for replica in fleet.ready()]
            await timed.of("open", sender.open_transfer(members, DEADLINE_S))
        await changes(fleet, standins, timed, flags.repeats)
        await timed.of("route", route(fleet, flags.completions // K, flags.in_flight, settings.rollout_max_num_seqs))
        assert len(fleet.ready()) == flags.replicas
    print(f"open_ms {timed.median('open'):.4g}  loss_ms {timed.median('loss'):.4g}  join_ms {timed.median('join'):.4g}")
    return {
        "membership_ms": mean([timed.median("loss"), timed.median("join")]),
        "push_control_ms": timed.median("push"),
        "routing_us": 1e3 * timed.median("route") / flags.completions,
    }


def main() -> None:
    """Measure and print; the last line is JSON."""
    flags = arguments()
    profile = cProfile.Profile()
    if flags.profile:
        profile.enable()
    figures = asyncio.run(measure(flags))
    if flags.profile:
        profile.disable()
        profile.dump_stats(flags.profile)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
