"""The three parts of a run, started together or joined, and stopped in reverse order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from reward_server.client import RewardClient
from reward_server.scale import ADDRESS_FILE as REWARD_ADDRESS_FILE
from reward_server.scheme import Scheme
from reward_server.service import CLIENT_MARGIN_S
from rollout_server.announce import Finder, facts_of
from rollout_server.control import ControlApi, served
from rollout_server.fleet import FLEET, Fleet
from rollout_server.placement import KIND, replica_plan
from rollout_server.scale import ADDRESS_FILE
from rollout_server.started import StartedReplicas
from trainer.config import RunSettings
from trainer.judge_service import JudgeService
from trainer.placement import place_learner, ray_cluster
from trainer.ranks import Learner
from wire.claim import Owner
from wire.errors import ConfigError, ServiceError
from wire.estate import inherited
from wire.hosting import PlacedServer, Plan
from wire.placement import RayCluster, announced_services, at_node, taken
from wire.registry import REPLICA
from wire.waits import waiter, waiting

OBSERVE_INTERVAL_S = 5.0
PLACES_LEARNER = "places the learner"
IS_ASKED = "is asked who judges there"


@dataclass
class Writers:
    """Who writes completions, and who gives them the weights. `meeting_host` is the address where the learner's ranks
    meet."""

    learner: Learner
    fleet: Fleet
    replicas: StartedReplicas
    finder: Finder | None
    meeting_host: str

    async def watch(self) -> None:
        """Tend the fleet; runs until cancelled.

        Raises:
            ServiceError: the fleet is too small for too long.
        """
        await self._watch()

    async def _watch(self, *others: Coroutine[Any, Any, None]) -> None:
        with waiter(FLEET):  # who waits for a replica that is started again
            tasks = [asyncio.create_task(part) for part in (self.fleet.tend(), self.replicas.tend())]
        if self.finder is not None:
            tasks.append(asyncio.create_task(self.finder.watch()))
        tasks += [asyncio.create_task(other) for other in others]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Services(Writers):
    """What the driver talks to."""

    judge: RewardClient
    judge_service: JudgeService
    judge_info: dict[str, Any] = field(default_factory=dict)

    async def observe(self) -> None:
        """Keep `judge_info` fresh. A service that does not answer shows as missing verdicts, and not here."""
        while True:
            with suppress(ServiceError):
                self.judge_info = await self.judge.info()
            await asyncio.sleep(OBSERVE_INTERVAL_S)

    def judge_metrics(self) -> dict[str, float]:
        """The service's state as metrics, as far as it is known."""
        found = {
            "judge/queue_depth": self.judge_info.get("queue_depth"),
            "judge/prefix_cache_hits": self.judge_info.get("prefix_cache_hit_share"),
            "judge/servers": sum(server["state"] == "ready" for server in self.judge_info.get("servers", ())),
        }
        return {name: float(value) for name, value in found.items() if value is not None}

    async def watch(self) -> None:
        """Tend the fleet, and look after the judge; runs until cancelled.

        Raises:
            ServiceError: the judge that this run started has ended, or the fleet is too small for too long.
        """
        await self._watch(self.judge_service.watch())

    def adopted(self) -> dict[str, Any]:
        """What of a dead driver's servers is this run's, for the summary."""
        return {"adopted_replicas": self.replicas.num_adopted, "adopted_reward_service": self.judge_service.is_adopted}


@asynccontextmanager
async def running_services(settings: RunSettings, token: str, say: Callable[[str], None]) -> AsyncIterator[Services]:
    """Start what is not joined, all three parts at once, and stop it again in reverse order.

    Args:
        settings: the run's.
        token: the access token.
        say: told of each part that is ready.

    Raises:
        ConfigError: the run is deterministic and the reward service that it joins is not.
        ServiceError: a part did not start; the message carries its last words.
    """
    async with AsyncExitStack() as stack:
        owner = stack.enter_context(ray_cluster(settings))
        judge_service = JudgeService(settings, RayCluster(), owner, say)
        stack.push_async_callback(judge_service.stop)
        await judge_service.inherit()
        writers = await _placed(stack, settings, owner, token, say)
        learner, fleet, replicas = writers.learner, writers.fleet, writers.replicas
        reward_url, *_ = await _all_or_none(judge_service.start(), *_starts(writers, settings, say))
        api = ControlApi(fleet, replicas, token)
        fleet_url = await stack.enter_async_context(served(api, at_node(settings)))
        stack.enter_context(_announced(fleet_url, Path(settings.output_dir) / ADDRESS_FILE))
        stack.enter_context(_announced(reward_url, Path(settings.output_dir) / REWARD_ADDRESS_FILE))
        say(f"fleet: {fleet_url}")
        judge = await stack.enter_async_context(
            RewardClient(
                reward_url,
                token,
                settings.judge_timeout_s + CLIENT_MARGIN_S,
                scheme=Scheme.of(settings),
            )
        )
        with waiting(f"judge {judge.url}", IS_ASKED):
            info = await judge.info()
        if settings.deterministic and not info.get("deterministic"):
            raise ConfigError(f"a deterministic run cannot join {reward_url}: start it with --deterministic true too")
        yield Services(learner, fleet, replicas, writers.finder, writers.meeting_host, judge, judge_service, info)


@asynccontextmanager
async def running_writers(settings: RunSettings, token: str, say: Callable[[str], None]) -> AsyncIterator[Writers]:
    """The same without a judge and without a control API: who only answers.

    Raises:
        ServiceError: a part did not start; the message carries its last words.
    """
    async with AsyncExitStack() as stack:
        owner = stack.enter_context(ray_cluster(settings))
        writers = await _placed(stack, settings, owner, token, say)
        await _all_or_none(*_starts(writers, settings, say))
        yield writers


async def _placed(
    stack: AsyncExitStack, settings: RunSettings, owner: Owner, token: str, say: Callable[[str], None]
) -> Writers:
    """A learner and a fleet, not started yet but for the replicas that a dead driver left; `stack` ends them."""
    cluster = RayCluster()

    def plan_of(index: int) -> Plan | None:
        return replica_plan(settings, index) if index < settings.replicas else None

    left = await inherited(cluster, owner, KIND, plan_of, say) if settings.ray_address else {}
    async with AsyncExitStack() as until_placed:
        for server in left.values():
            until_placed.push_async_callback(server.stop)
        with waiting("ray", PLACES_LEARNER):
            ranks, meeting_host = await place_learner(settings, say)
        until_placed.pop_all()
    learner = Learner(ranks, settings)
    stack.push_async_callback(learner.close)
    fleet = await stack.enter_async_context(Fleet(settings, token, skip_push=settings.skip_push, say=say))

    def place(index: int) -> PlacedServer:
        return PlacedServer(replica_plan(settings, index), cluster, owner, say)

    replicas = StartedReplicas(settings, fleet, place, say, left)
    stack.push_async_callback(replicas.stop)
    return Writers(learner, fleet, replicas, _finder(settings, fleet, owner, say), meeting_host)


def _finder(settings: RunSettings, fleet: Fleet, owner: Owner, say: Callable[[str], None]) -> Finder | None:
    if not settings.finds_replicas:
        return None

    def take(url: str) -> str | None:
        return taken(REPLICA, url, owner)

    return Finder(facts_of(settings), fleet, partial(announced_services, REPLICA), take, say)


def _starts(
    writers: Writers, settings: RunSettings, say: Callable[[str], None]
) -> list[Coroutine[Any, Any, Any] | asyncio.Future[Any]]:
    """What is to be awaited, all at once, until they are up."""
    return [
        _learner_started(writers.learner, writers.meeting_host, say),
        writers.replicas.start(settings.replicas),
        asyncio.gather(*(writers.fleet.add(url) for url in settings.rollout_urls)),
    ]


@asynccontextmanager
async def second_judges(settings: RunSettings, token: str) -> AsyncIterator[list[RewardClient]]:
    """The service that only compares answers, if there is one: it was started by hand, and stays.

    Raises:
        ServiceError: nobody answers, or it refuses the token.
    """
    if settings.second_reward_url is None:
        yield []
        return
    timeout_s = settings.judge_timeout_s + CLIENT_MARGIN_S
    async with RewardClient(settings.second_reward_url, token, timeout_s) as judge:
        with waiting(f"judge {judge.url}", IS_ASKED):
            await judge.info()
        yield [judge]


@contextmanager
def _announced(url: str, path: Path) -> Iterator[None]:
    """Name an address in the run's folder while the context is open."""
    path.write_text(url + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


async def _learner_started(learner: Learner, meeting_host: str, say: Callable[[str], None]) -> dict[str, Any]:
    facts = await learner.setup(meeting_host)
    say(f"ready: learner, {facts['num_parameters'] / 1e6:.1f} M parameters on {learner.num_ranks} ranks")
    return facts


async def _all_or_none(*parts: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> list[Any]:
    """All results; the first failure ends the wait for the others."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
