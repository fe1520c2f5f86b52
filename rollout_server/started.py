"""The replicas that a run starts itself: kept running, more or fewer of them on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rollout_server.config import RolloutSettings
from rollout_server.fleet import Fleet
from rollout_server.membership import State
from wire.errors import ConfigError, ServiceError
from wire.keeper import deaths_in_a_row, pause_after
from wire.waits import waiting

PLACE_MARGIN_S = 15.0
CHECK_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 30.0
STARTS = "starts"


class Host(Protocol):
    """A replica's server on its node, as `rollout_server.placement` makes it."""

    async def start(self) -> str:
        """Start the server and wait until it answers; returns its URL. Raises ServiceError with its last words, or
        ConfigError where its node cannot serve what the settings say."""

    async def check(self) -> None:
        """Raises ServiceError where the server, or its node, is gone."""

    async def stop(self) -> None:
        """End the server and give its place back."""


@dataclass
class Post:
    """A place in the fleet that is to be filled: with one host after another, should they die.

    `answered` is the monotonic time at which the host's server answered; `early_deaths` how many in a row died young.
    """

    index: int
    host: Host | None = None
    starting: asyncio.Task[str] | None = None
    url: str | None = None
    answered: float = 0.0
    early_deaths: int = 0
    restart_at: float = 0.0

    @property
    def name(self) -> str:
        """What a message calls it: the URL, once there is one."""
        return self.url or f"replica-{self.index}"


class StartedReplicas:
    """Keeps `count` replicas running and the fleet told of them.

    Args:
        settings: deadlines, and how often one is started again.
        fleet: takes each in.
        place: makes the host of replica `index`, not yet started.
        say: told of each that is ready, and of each that dies.
        inherited: hosts by index that a dead driver left, their servers started.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        fleet: Fleet,
        place: Callable[[int], Host],
        say: Callable[[str], None],
        inherited: Mapping[int, Host] | None = None,
    ) -> None:
        self._settings, self._fleet, self._place, self._say = settings, fleet, place, say
        self._inherited = dict(inherited or {})
        self.num_adopted = 0  # of those inherited
        self._posts: dict[int, Post] = {}
        self._hosts: dict[Host, str] = {host: f"replica-{index}" for index, host in self._inherited.items()}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """Replicas that are kept running."""
        return len(self._posts)

    async def start(self, count: int) -> None:
        """Start the first ones and wait for them: one that dies before it ever answered has a mistake in its settings.

        Raises:
            ConfigError: a node cannot serve what the settings say.
            ServiceError: one did not start; the message carries its last words.
        """
        self.resize(count)
        try:
            await asyncio.gather(*(self._fill(post) for post in self._posts.values()))
        except BaseException:
            await self.stop()
            raise

    def resize(self, count: int) -> None:
        """Make them `count`: new ones start with the next `tend`; the last finish what they write and are ended."""
        free = [index for index in range(count + self.count) if index not in self._posts]
        for index in free[: max(0, count - self.count)]:
            self._posts[index] = Post(index)
        for index in sorted(self._posts)[max(count, 0) :]:
            self._later(self._retire(self._posts.pop(index)))

    def state(self) -> list[dict[str, Any]]:
        """Those that are not in the fleet yet, as JSON."""
        now = time.monotonic()
        return [
            {
                "url": f"replica-{post.index}",
                "state": State.STARTING,
                "started": True,
                "reason": "" if post.starting else f"starts again in {max(0.0, post.restart_at - now):.0f} s",
            }
            for post in self._posts.values()
            if post.url is None
        ]

    async def tend(self) -> None:
        """Start, look after, bury and start again; until cancelled.

        Raises:
            ServiceError: one died too often and the fleet has no other; the message carries its last words. Where
                there are others the run goes on with them, and says so.
        """
        while True:
            await asyncio.gather(*(self._tend(post) for post in list(self._posts.values())))
            await asyncio.sleep(self._settings.probe_interval_s)

    async def _tend(self, post: Post) -> None:
        if post.url is not None:
            problem = await self._problem_of(post)
            if problem is not None:
                await self._bury(post, problem)
        elif post.starting is not None:
            if post.starting.done():
                await self._note_start(post)
        elif time.monotonic() >= post.restart_at:
            post.starting = asyncio.create_task(self._start(post))

    async def _fill(self, post: Post) -> None:
        if await self._adopt(post):
            return
        post.starting = asyncio.create_task(self._start(post))
        await asyncio.wait([post.starting])
        url = post.starting.result()
        await self._fleet.add(url, is_started=True)
        post.starting = None
        self._note_answer(post, url)

    async def _adopt(self, post: Post) -> bool:
        """Fill the post with what a dead driver left; False where there is nothing, or it is not fit any more."""
        host = self._inherited.pop(post.index, None)
        if host is None:
            return False
        try:
            with waiting(f"replica {post.index}", STARTS):  # it may be half-way
                async with asyncio.timeout(self._settings.startup_timeout_s):
                    url = await host.start()
            await self._fleet.add(url, is_started=True, is_inherited=True)
        except (ConfigError, ServiceError, TimeoutError) as error:
            self._say(f"{post.name} that a dead driver left is not used: {error or 'it does not start'}")
            await self._end(host, post.name)
            return False
        post.host = host
        self._note_answer(post, url)
        self.num_adopted += 1
        self._say(f"adopted: {url}")
        return True

    async def _start(self, post: Post) -> str:
        post.host = self._place(post.index)
        self._hosts[post.host] = post.name
        deadline_s = self._settings.startup_timeout_s + PLACE_MARGIN_S  # the host keeps the start's own deadline
        try:
            with waiting(f"replica {post.index}", STARTS):
                async with asyncio.timeout(deadline_s):
                    url = await post.host.start()
        except TimeoutError:
            raise ServiceError(
                f"replica-{post.index} found no node with a free `rollout` resource within {deadline_s:.0f} s"
            ) from None
        self._say(f"ready: {url}")
        return url

    async def _note_start(self, post: Post) -> None:
        assert post.starting is not None
        starting, post.starting = post.starting, None
        try:
            url = starting.result()
            await self._fleet.add(url, is_started=True)
        except (ConfigError, ServiceError) as error:  # in the middle of a run one node's mistake does not end it
            await self._bury(post, str(error))
        else:
            self._note_answer(post, url)

    def _note_answer(self, post: Post, url: str) -> None:
        assert post.host is not None
        post.url, post.answered = url, time.monotonic()
        self._hosts[post.host] = url

    async def _problem_of(self, post: Post) -> str | None:
        """Why a replica must be started again; None where it need not be."""
        assert post.host is not None and post.url is not None
        known = self._fleet.membership.find(post.url)
        if known is not None and known.state is State.LOST:
            return known.reason
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await post.host.check()
        except ServiceError as error:
            if known is not None:
                self._fleet.membership.lose(known, str(error))
            return str(error)
        except TimeoutError:
            pass  # its node may be cut off: the probe of the replica itself says whether it is lost
        return None

    async def _bury(self, post: Post, reason: str) -> None:
        """End what is left of it, and set the time at which another takes its place."""
        lived_s = time.monotonic() - post.answered if post.url is not None else 0.0
        post.early_deaths = deaths_in_a_row(post.early_deaths, lived_s)
        known = self._fleet.membership.find(post.url or "")
        if known is not None:
            self._fleet.membership.forget(known)
        host, name, post.host, post.url = post.host, post.name, None, None
        if host is not None:
            self._later(self._end(host, name))
        if post.early_deaths > self._settings.replica_restarts:
            self._posts.pop(post.index, None)
            if not self._posts and not self._fleet.ready():
                raise ServiceError(f"{reason} It died {post.early_deaths} times in a row.")
            self._say(f"{reason} replica-{post.index} died {post.early_deaths} times in a row and is given up")
            return
        pause_s = pause_after(post.early_deaths)
        post.restart_at = time.monotonic() + pause_s
        self._say(f"replica-{post.index} is started again in {pause_s:.0f} s: {reason}")

    async def _retire(self, post: Post) -> None:
        if post.starting is not None:
            post.starting.cancel()
            await asyncio.gather(post.starting, return_exceptions=True)
        if post.url is not None:
            await self._fleet.remove(post.url)
        if post.host is not None:
            await self._end(post.host, post.name)

    async def _end(self, host: Host, name: str) -> None:
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await host.stop()
            self._hosts.pop(host, None)
        except TimeoutError:
            self._say(f"the host of {name} did not end within {STOP_TIMEOUT_S:.0f} s; the run's supervisor ends it")

    def _later(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def stop(self) -> None:
        """End all, also those whose end was under way."""
        starting = [post.starting for post in self._posts.values() if post.starting is not None]
        self._posts.clear()
        for task in [*starting, *self._ending]:
            task.cancel()
        await asyncio.gather(*starting, *self._ending, return_exceptions=True)
        await asyncio.gather(*(self._end(host, name) for host, name in list(self._hosts.items())))
