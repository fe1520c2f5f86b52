"""The three parts of a run, started together or joined, and stopped in reverse order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reward_server.announce import choose, facts_of
from reward_server.client import RewardClient
from reward_server.fetch_state import FetchState
from reward_server.fetch_wait import until_fetched
from reward_server.placement import place_reward_service, room_for_reward_service
from reward_server.scale import ADDRESS_FILE as REWARD_ADDRESS_FILE
from reward_server.scheme import Scheme
from reward_server.service import CLIENT_MARGIN_S
from rollout_server.control import ControlApi, served
from rollout_server.fleet import FLEET, Fleet
from rollout_server.placement import PlacedReplica
from rollout_server.scale import ADDRESS_FILE
from rollout_server.started import StartedReplicas
from trainer.config import RunSettings
from trainer.placement import place_learner, ray_cluster, stop_host
from trainer.ranks import Learner
from wire.errors import ConfigError, ServiceError
from wire.placement import announced_services, at_node
from wire.registry import REWARD
from wire.waits import waiter, waiting

WATCH_INTERVAL_S = 2.0
OBSERVE_INTERVAL_S = 5.0
CHECK_TIMEOUT_S = 60.0  # a host that does not answer for so long is frozen, or its node is cut off
STARTS = "starts"
PLACES_LEARNER = "places the learner"
IS_ASKED = "is asked who judges there"
PLACE_MARGIN_S = 15.0  # until a node is found; the host keeps the start's own deadline


@dataclass
class Writers:
    """Who writes completions, and who gives them the weights. `meeting_host` is the address where the learner's ranks
    meet."""

    learner: Learner
    fleet: Fleet
    replicas: StartedReplicas
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
    judge_hosts: list[Any]
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
        await self._watch(self._watch_judge())

    async def _watch_judge(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for host in self.judge_hosts:
                try:
                    async with asyncio.timeout(CHECK_TIMEOUT_S) as scope:
                        await host.check.remote()
                except Exception as error:  # Ray raises the actor's own error, or one of many of its own
                    if scope.expired():
                        raise ServiceError(
                            f"the host of the reward service at {self.judge.url} did not answer within "
                            f"{CHECK_TIMEOUT_S:.0f} s: it is frozen, or its node is cut off"
                        ) from error
                    raise ServiceError(str(getattr(error, "cause", None) or error)) from error


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
        writers = await _placed(stack, settings, token, say)
        learner, fleet, replicas = writers.learner, writers.fleet, writers.replicas
        if settings.ray_address and not settings.reward_url:
            settings = replace(settings, reward_url=await _found_judge(settings, say))
        judge_hosts: list[Any] = []

        def hosted(host: Any) -> Any:
            judge_hosts.append(host)
            stack.callback(stop_host, host)
            return host

        starts = [] if settings.reward_url else [_judge_started(settings, hosted, say)]
        urls, *_ = await _all_or_none(asyncio.gather(*starts), *_starts(writers, settings, say))
        reward_url = settings.reward_url or urls[0]
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
        yield Services(learner, fleet, replicas, writers.meeting_host, judge, judge_hosts, info)


@asynccontextmanager
async def running_writers(settings: RunSettings, token: str, say: Callable[[str], None]) -> AsyncIterator[Writers]:
    """The same without a judge and without a control API: who only answers.

    Raises:
        ServiceError: a part did not start; the message carries its last words.
    """
    async with AsyncExitStack() as stack:
        writers = await _placed(stack, settings, token, say)
        await _all_or_none(*_starts(writers, settings, say))
        yield writers


async def _placed(stack: AsyncExitStack, settings: RunSettings, token: str, say: Callable[[str], None]) -> Writers:
    """The cluster, and on it a learner and a fleet that are not started yet; `stack` ends them."""
    stack.enter_context(ray_cluster(settings))
    with waiting("ray", PLACES_LEARNER):
        ranks, meeting_host = await place_learner(settings, say)
    learner = Learner(ranks, settings)
    stack.push_async_callback(learner.close)
    fleet = await stack.enter_async_context(Fleet(settings, token, skip_push=settings.skip_push, say=say))
    replicas = StartedReplicas(settings, fleet, lambda index: PlacedReplica(settings, index, say), say)
    stack.push_async_callback(replicas.stop)
    return Writers(learner, fleet, replicas, meeting_host)


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


async def _found_judge(settings: RunSettings, say: Callable[[str], None]) -> str | None:
    """A reward service that was announced in the cluster and judges as the settings say; None where there is none."""
    try:
        found = await asyncio.to_thread(announced_services, REWARD)
    except ServiceError as error:
        say(f"{error}; no service is looked for in the cluster")
        return None
    with waiting("judge", IS_ASKED):
        return await choose(found, facts_of(settings), say)


async def _judge_started(settings: RunSettings, hosted: Callable[[Any], Any], say: Callable[[str], None]) -> str:
    """Place the reward service and start it; returns its URL. `hosted` is told of its host before it starts."""
    room = room_for_reward_service(settings)
    try:
        with waiting("judge", STARTS):
            async with asyncio.timeout(settings.startup_timeout_s):
                await room.found(say)
    except TimeoutError:
        raise ServiceError(
            f"the reward service found no node with room for it within {settings.startup_timeout_s:.0f} s"
        ) from None
    host = hosted(place_reward_service(settings, room))
    await until_fetched(lambda: _files_of(host), settings.judge_model_name_or_path, say)
    return await _started(host, settings.startup_timeout_s, say)


async def _files_of(host: Any) -> FetchState | None:
    try:
        state: FetchState | None = await host.fetch.remote()
    except Exception as error:  # the actor's own error, wrapped by Ray
        cause = getattr(error, "cause", None)
        if isinstance(cause, ConfigError):
            raise cause from error
        raise ServiceError(str(cause or error)) from error
    return state


async def _started(host: Any, timeout_s: float, say: Callable[[str], None]) -> str:
    deadline_s = timeout_s + PLACE_MARGIN_S
    try:
        with waiting("judge", STARTS):
            async with asyncio.timeout(deadline_s) as scope:
                url: str = await host.start.remote()
    except Exception as error:  # the actor's own error, wrapped by Ray
        if scope.expired():
            raise ServiceError(
                f"the reward service found no node with a free `reward` resource within {deadline_s:.0f} s, or its "
                "host is silent"
            ) from error
        cause = getattr(error, "cause", None)
        if isinstance(cause, ConfigError):
            raise ConfigError(f"the reward service: {cause}") from error
        raise ServiceError(str(cause or error)) from error
    say(f"ready: {url}")
    return url


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
