"""The reward service of a run: joined by its URL, taken over from a dead driver, found in the cluster, or started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from reward_server.announce import choose, facts_of
from reward_server.config import RewardSettings
from reward_server.fetch_state import FetchState
from reward_server.fetch_wait import until_fetched
from reward_server.placement import KIND, reward_plan
from wire.claim import Owner
from wire.errors import ConfigError, ServiceError
from wire.estate import inherited
from wire.hosting import Cluster, PlacedServer
from wire.placement import announced_services
from wire.registry import REWARD
from wire.waits import waiting

WATCH_INTERVAL_S = 2.0
CHECK_TIMEOUT_S = 60.0  # a host that does not answer for so long is frozen, or its node is cut off
PLACE_MARGIN_S = 15.0  # the host keeps the start's own deadline
LOOK_EVERY_S = 5.0
STARTS = "starts"
IS_ASKED = "is asked who judges there"


class JudgeService:
    """The service, and its host where this run ends it.

    Args:
        settings: the run's.
        cluster: where it is placed.
        owner: this driver.
        say: told how it was come by.
    """

    def __init__(self, settings: RewardSettings, cluster: Cluster, owner: Owner, say: Callable[[str], None]) -> None:
        self._settings, self._cluster, self._owner, self._say = settings, cluster, owner, say
        self._host: PlacedServer | None = None
        self._said: set[str] = set()
        self._is_left = False  # by a dead driver, and not known yet to be fit
        self.is_adopted = False
        self.url = settings.reward_url or ""

    async def inherit(self) -> None:
        """Claim what a dead driver left, before others are placed where it is."""
        if not self._settings.ray_address:
            return
        plan = None if self._settings.reward_url else reward_plan(self._settings)
        left = await inherited(self._cluster, self._owner, KIND, lambda index: None if index else plan, self._say)
        self._host = left.get(0)
        self._is_left = self._host is not None

    async def start(self) -> str:
        """Wait until it answers, whatever must be done for that; returns its URL.

        Raises:
            ConfigError: a node cannot serve what the settings say.
            ServiceError: it does not start; the message carries its last words.
        """
        self.url = self.url or await self._adopted() or await self._found() or await self._started()
        return self.url

    async def watch(self) -> None:
        """Look after one that this run ends; runs until cancelled, and at once is over where there is none.

        Raises:
            ServiceError: it has ended, with its last words, or its host is silent.
        """
        while self._host is not None:
            await asyncio.sleep(WATCH_INTERVAL_S)
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    await self._host.check()
            except TimeoutError as error:
                raise ServiceError(
                    f"the host of the reward service at {self.url} did not answer within {CHECK_TIMEOUT_S:.0f} s: "
                    "it is frozen, or its node is cut off"
                ) from error

    async def stop(self) -> None:
        """End it, where this run has started it or taken it over."""
        host, self._host = self._host, None
        if host is not None:
            await host.stop()

    async def _adopted(self) -> str:
        if self._host is None or not self._is_left:
            return ""
        try:
            url = await self._answer()
        except (ConfigError, ServiceError) as error:
            self._say(f"the reward service that a dead driver left is not used: {error}")
            await self.stop()
            return ""
        self.is_adopted = True
        self._say(f"adopted: {url}")
        return url

    async def _found(self) -> str | None:
        """One that was announced in the cluster and judges as the settings say; None where there is none."""
        if not self._settings.ray_address:
            return None
        try:
            found = await asyncio.to_thread(announced_services, REWARD)
        except ServiceError as error:
            self._say_once(f"{error}; no service is looked for in the cluster")
            return None
        with waiting("judge", IS_ASKED):
            return await choose(found, facts_of(self._settings), self._say_once)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    async def _started(self) -> str:
        """One of this run's own, or one that is announced while that waits for room: a service by hand that is still
        loading has the place already."""
        host = self._host = PlacedServer(reward_plan(self._settings), self._cluster, self._owner, self._say)
        timeout_s = self._settings.startup_timeout_s
        placing = asyncio.create_task(host.place())
        try:
            with waiting("judge", STARTS):
                async with asyncio.timeout(timeout_s):
                    while not (await asyncio.wait([placing], timeout=LOOK_EVERY_S))[0]:
                        if found := await self._found():
                            await self.stop()
                            return found
            placing.result()
        except TimeoutError:
            raise ServiceError(f"the reward service found no node with room for it within {timeout_s:.0f} s") from None
        finally:
            placing.cancel()
        url = await self._answer()
        self._say(f"ready: {url}")
        return url

    async def _files(self) -> FetchState | None:
        assert self._host is not None
        state: FetchState | None = await self._host.ask("fetch")
        return state

    async def _answer(self) -> str:
        assert self._host is not None
        await until_fetched(self._files, self._settings.judge_model_name_or_path, self._say)
        deadline_s = self._settings.startup_timeout_s + PLACE_MARGIN_S
        try:
            with waiting("judge", STARTS):
                async with asyncio.timeout(deadline_s):
                    return await self._host.start()
        except TimeoutError as error:
            raise ServiceError(
                f"the reward service did not start within {deadline_s:.0f} s, and its host is silent"
            ) from error
