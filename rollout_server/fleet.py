"""All replicas together: they come, take the live version, write, and go, while the training goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Self

from rollout_server.config import RolloutSettings
from rollout_server.control_routes import ControlRoutes, on_all
from rollout_server.membership import Membership, Replica, State, now_s
from rollout_server.push import Fruitless, Push, Superseded, WeightSender
from wire.errors import ServiceError
from wire.generation import PolicyVersion
from wire.waits import WAITS, Wait, waiter, waiting

CATCH_UP_PATIENCE = 10  # a joiner may take so many times as long as the last push took
LEAST_CATCH_UP_S = 20.0
CHECKSUM_TIMEOUT_S = 300.0
DRIVER, FLEET = "driver", "fleet"  # who wait; the fleet is waited for too
TAKES_WEIGHTS = "takes weights"
HAS_TOO_FEW = "has too few replicas"
IS_MET = "is asked who it is"
COUNTED = (
    "joins",
    "losses",
    "leaves",
    "retries",
    "rerouted_prompts",
    "tokens_discarded",
)  # as metrics, since the start


class Fleet:
    """The replicas of a run.

    Args:
        settings: deadlines and limits.
        token: the run's access token.
        skip_push: a test's switch: pushes after the first only move the label, not the weights.
        say: told of every change that a person should know of.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        token: str,
        *,
        skip_push: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings, self._skip_push, self._say = settings, skip_push, say
        self.membership = Membership(say)
        self._routes = ControlRoutes(token)
        self.push = Push(
            self.membership,
            self._routes,
            timeout_s=settings.transfer_timeout_s,
            probe_timeout_s=settings.probe_timeout_s,
            drain_timeout_s=settings.rollout_timeout_s,
            keep=settings.inflight_updates,
        )
        self._urls: set[str] = set()  # joined replicas, also those that are away just now
        self._lock = asyncio.Lock()  # one push at a time
        self._sender: WeightSender | None = None
        self.version: PolicyVersion | None = None  # the live one: every ready replica holds it
        self._short: Wait | None = None  # since when there are fewer than min_replicas
        self._suspects: set[Replica] = set()
        self._returning: dict[str, asyncio.Task[None]] = {}  # joined replicas that are asked whether they are back
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._resources.enter_async_context(self._routes)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._resources.aclose()

    # --- who belongs

    async def add(self, url: str, *, is_started: bool = False, is_inherited: bool = False) -> Replica:
        """Take in the server at `url`: it gets the live version before its first prompt. One that is inherited from a
        dead driver is emptied first.

        Raises:
            ServiceError: it does not answer within `probe_timeout_s`; the message names it.
            Unauthorized: it refuses the token.
        """
        url = url.rstrip("/")
        with waiting(f"replica {url}", IS_MET):
            if is_inherited:
                await self._routes.empty(url, self._settings.transfer_timeout_s)
            world_size, boot_id = await self._routes.meet(url, self._settings.probe_timeout_s)
        known = self.membership.find(url)
        if known is not None and known.state is not State.LOST and known.boot_id == boot_id:
            return known
        if known is not None:
            self.membership.lose(known, "started again")
        if not is_started:
            self._urls.add(url)
        replica = Replica(url, world_size, boot_id, is_started=is_started, state=State.SYNCING)
        self.membership.enter(replica)
        return replica

    @property
    def joined(self) -> Collection[str]:
        """URLs of those that were joined and not removed, also of those that are away just now."""
        return self._urls

    async def remove(self, url: str) -> None:
        """Let the replica at `url` go: it finishes what it writes for drain_timeout_s, the rest goes to others."""
        self._urls.discard(url)
        replica = self.membership.find(url)
        if replica is not None:
            await self.membership.leave(replica, self._settings.drain_timeout_s)

    # --- as the client of completions sees it (rollout_server.places.Members)

    def ready(self) -> Sequence[Replica]:
        """The replicas that hold the live version and write."""
        return self.membership.of(State.READY)

    async def changed(self, timeout_s: float) -> None:
        """Return at the next change of any replica's state, or after `timeout_s` seconds."""
        await self.membership.changed(timeout_s)

    def suspect(self, replica: Replica) -> None:
        """A request to it failed: ask it at once whether it lives."""
        self._suspects.add(replica)

    def count(self, name: str, number: int = 1) -> None:
        """Count what happened to prompts: rerouted_prompts, tokens_discarded."""
        self.membership.counts[name] += number

    # --- weights

    async def publish(self, sender: WeightSender, version: PolicyVersion) -> None:
        """Make `version` the live one on every replica that is there; with none there, on each that comes.

        Requests in flight go on with the new weights, and the spans of their tokens say so; or they are finished
        first, where `inflight_updates` is off.

        Raises:
            ServiceError: the learner failed, or nothing can be sent though the members live.
        """
        with waiting(FLEET, TAKES_WEIGHTS), waiter(FLEET):
            async with self._lock:
                self._sender, self.version = sender, version
                replicas = self.membership.of(State.READY, State.SYNCING)
                if self._skip_push and replicas and all(replica.version is not None for replica in replicas):
                    await self._relabel(replicas, version)
                else:
                    await self.push.bring(sender, version, replicas)

    async def _relabel(self, replicas: Sequence[Replica], version: PolicyVersion) -> None:
        self.membership.hold(replicas)
        timeout_s = self._settings.probe_timeout_s
        calls = [self._routes.relabel(replica, version.label, timeout_s) for replica in replicas]
        for url, problem in (await on_all(replicas, calls)).items():
            raise ServiceError(f"{url}: {problem}")
        for replica in replicas:
            self.membership.admit(replica, version)

    async def _catch_up(self) -> None:
        """Bring the live version to those that came since the last push, without touching the others."""
        joiners = self.membership.of(State.SYNCING)
        if not joiners or self._lock.locked() or self._sender is None:
            return
        async with self._lock:
            assert self.version is not None
            # A sick joiner must not hold the learner for as long as a push to the whole fleet may take.
            patience = max(LEAST_CATCH_UP_S, CATCH_UP_PATIENCE * self.push.last_s)
            timeout_s = min(self._settings.transfer_timeout_s, patience)
            with suppress(Superseded):  # the learner is past it: the joiners are in the next push
                try:
                    await self.push.bring(self._sender, self.version, joiners, timeout_s)
                except Fruitless as error:  # theirs alone: the run does not end for them
                    for replica in joiners:
                        self.membership.lose(replica, str(error))

    async def versions(self) -> list[str]:
        """What each ready replica itself says it holds."""
        timeout_s = self._settings.probe_timeout_s
        return [await self._routes.version(replica, timeout_s) for replica in self.ready()]

    async def checksums(self) -> dict[str, dict[str, str]]:
        """vLLM's checksums of the tensors that each ready replica holds, by URL and name of the tensor. No push comes
        in between."""
        async with self._lock:
            replicas = list(self.ready())
            found = await asyncio.gather(*(self._routes.checksums(replica, CHECKSUM_TIMEOUT_S) for replica in replicas))
        return {replica.url: sums for replica, sums in zip(replicas, found, strict=True)}

    # --- while it runs

    async def tend(self) -> None:
        """Probe, bring back who was away, catch up who is new; until cancelled.

        Raises:
            ServiceError: fewer than min_replicas have been ready for replica_wait_s; or as `publish` does.
        """
        try:
            with waiter(FLEET):
                await self._tend()
        finally:
            self._note_size(short=False)
            returning = list(self._returning.values())
            for task in returning:
                task.cancel()
            await asyncio.gather(*returning, return_exceptions=True)

    async def _tend(self) -> None:
        while True:
            self._suspects.clear()
            await self._probe_all()
            self._look_for_the_lost()
            await self._catch_up()
            self._check_size()
            end = now_s() + self._settings.probe_interval_s
            while now_s() < end and not self._suspects:
                await self.changed(min(0.2, self._settings.probe_interval_s))
                if self.membership.of(State.SYNCING):
                    await self._catch_up()

    async def _probe_all(self) -> None:
        """Part with members whose engine does not answer. One that is taking weights answers to nobody: the transfer
        judges it by its own deadline."""
        states = (State.READY, State.DRAINING) if self._lock.locked() else (State.READY, State.DRAINING, State.SYNCING)
        asked = [(replica, replica.since) for replica in self.membership.of(*states)]
        replicas = [replica for replica, _ in asked]
        calls = [self._routes.probe(replica, self._settings.probe_timeout_s) for replica in replicas]
        failed = await on_all(replicas, calls)
        for replica, since in asked:
            problem = failed.get(replica.url)
            takes_weights = replica.state is State.SYNCING and self._lock.locked()
            if problem is not None and replica.since == since and not takes_weights:  # else a push came in between
                self.membership.lose(replica, str(problem))

    def _look_for_the_lost(self) -> None:
        """Joined replicas that were lost, or started again, come back as new ones; so do those that thawed. Each is
        asked beside the rest: one that is still frozen holds up nobody."""
        for url in self._urls:
            known = self.membership.find(url)
            if (known is None or known.state is State.LOST) and url not in self._returning:
                self._returning[url] = asyncio.create_task(self._try_to_add(url))

    async def _try_to_add(self, url: str) -> None:
        try:
            await self.add(url)
        except ServiceError as error:  # away still, or it refuses the token by now
            known = self.membership.find(url)
            if known is not None:
                known.reason = str(error)
            await asyncio.sleep(self._settings.probe_interval_s)
        finally:
            del self._returning[url]

    def _check_size(self) -> None:
        if self.version is None or len(self.ready()) >= self._settings.min_replicas or self._lock.locked():
            self._note_size(short=False)
            return
        settings, num = self._settings, len(self.ready())
        lost = "; ".join(f"{replica.url}: {replica.reason}" for replica in self.membership.of(State.LOST))
        short = f"{num} of at least {settings.min_replicas} replicas are ready (lost: {lost or 'none'})"
        if self._short is None:
            self._note_size(short=True)
            self._say(
                f"the run waits: {short}; it goes on when one comes, and ends after {settings.replica_wait_s:.0f} s"
            )
        elif now_s() - self._short.since > settings.replica_wait_s:
            raise ServiceError(
                f"{short} for {settings.replica_wait_s:.0f} s; start replicas, or raise replica_wait_s "
                f"({settings.replica_wait_s:.0f})"
            )

    def _note_size(self, *, short: bool) -> None:
        if self._short is not None:
            WAITS.end(self._short)
        self._short = WAITS.begin(FLEET, HAS_TOO_FEW, who=DRIVER) if short else None

    # --- what a person sees

    def state(self) -> dict[str, Any]:
        """The fleet as JSON: epoch, live version, counts, and each replica."""
        now = now_s()
        return {
            "epoch": self.membership.epoch,
            "version": self.version.label if self.version else None,
            "counts": dict(self.membership.counts),
            "replicas": [
                {
                    "url": replica.url,
                    "state": replica.state,
                    "version": replica.version.label if replica.version else None,
                    "started": replica.is_started,
                    "in_flight": replica.in_flight,
                    "room": self._room(replica),
                    "tokens": replica.num_tokens,
                    "since_s": round(now - replica.since, 1),
                    "paused_s": round(replica.paused_s, 3),
                    "reason": replica.reason,
                }
                for replica in self.membership.replicas
            ],
        }

    def _room(self, replica: Replica) -> int:
        return replica.room or self._settings.rollout_max_num_seqs

    def metrics(self) -> dict[str, float]:
        """The fleet's part of a step's metrics, by TensorBoard name."""
        counts, ready = self.membership.counts, self.ready()
        pauses = [replica.last_pause_s for replica in ready]
        return {
            "fleet/replicas": float(len(ready)),
            "fleet/room_mean": sum(self._room(replica) for replica in ready) / len(ready) if ready else 0.0,
            "fleet/epoch": float(self.membership.epoch),
            "fleet/push_seconds": self.push.last_s,
            "fleet/gather_seconds": self.push.last.gather_seconds,
            "fleet/transfer_seconds": self.push.last.seconds,
            "fleet/load_seconds": self.push.last.load_seconds,
            "fleet/push_bytes": float(self.push.last.num_bytes),
            "fleet/pause_seconds_max": max(pauses, default=0.0),
            "fleet/pause_seconds_mean": sum(pauses) / len(pauses) if pauses else 0.0,
            **{f"fleet/{name}": float(counts[name]) for name in COUNTED},
        }
