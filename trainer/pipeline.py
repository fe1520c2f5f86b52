"""First in, first out, bounded lag.

    prompts --admit--> [ collect | collect | collect ... ] --take (in order of admission)--> step --release-->

At most `capacity` groups are alive, from admission until the weights they helped to make are live. With a capacity of
(max_lag + 1) x prompts_per_step no completion can be more than max_lag steps old when it is trained on: a group
admitted at version v has fewer than capacity groups before it, all of which are taken within max_lag steps after v.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Self

from trainer.group import Group
from trainer.prompts import Prompt
from wire.errors import PromptDropped, ServiceError

LEAST_DROPS_IN_A_ROW = 16


class Pipeline:
    """Keeps up to `capacity` groups in the making.

    Args:
        prompts: the stream to admit from.
        collect: makes a group of a prompt; raises PromptDropped where none comes of it.
        capacity: groups alive at once.
    """

    def __init__(
        self, prompts: Iterator[Prompt], collect: Callable[[Prompt], Awaitable[Group]], *, capacity: int
    ) -> None:
        self._prompts, self._collect, self._capacity = prompts, collect, capacity
        self._queue: deque[tuple[Prompt, asyncio.Task[Group]]] = deque()
        self._taken = 0  # groups handed out and not yet released: they still hold their places
        self.num_dropped = 0
        self._dropped_in_a_row = 0
        self.next_occurrence = 0  # the first prompt that no finished step has used: where a restart goes on

    async def __aenter__(self) -> Self:
        self._admit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for _, task in self._queue]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def num_ready(self) -> int:
        """Groups whose making is over but which were not taken yet."""
        return sum(task.done() for _, task in self._queue)

    @property
    def num_alive(self) -> int:
        """Groups that hold a place."""
        return len(self._queue) + self._taken

    async def take(self, num: int) -> list[Group]:
        """The next `num` groups in order of admission; a dropped one gives its place to the next in order.

        Raises:
            ServiceError: so many groups in a row were dropped that no prompt can be the reason.
            whatever else `collect` raised, other than PromptDropped.
        """
        groups: list[Group] = []
        while len(groups) < num:
            prompt, task = self._queue[0]
            try:
                group = await task
            except PromptDropped as error:
                self.num_dropped += 1
                self._dropped_in_a_row += 1
                if self._dropped_in_a_row >= max(2 * self._capacity, LEAST_DROPS_IN_A_ROW):
                    # One prompt's misfortune does not strike so often: the judge or the fleet is sick.
                    raise ServiceError(
                        f"{self._dropped_in_a_row} groups in a row were dropped; the last: {error}"
                    ) from error
                self._queue.popleft()
                self._admit()  # its place is free at once
            else:
                self._queue.popleft()
                self._taken += 1
                self._dropped_in_a_row = 0
                groups.append(group)
            self.next_occurrence = prompt.occurrence + 1
        return groups

    def release(self, num: int) -> None:
        """The weights that `num` taken groups helped to make are live: their places are free."""
        self._taken -= num
        self._admit()

    def _admit(self) -> None:
        while self.num_alive < self._capacity:
            prompt = next(self._prompts)
            task = asyncio.create_task(self._make(prompt), name=f"group-{prompt.occurrence}")
            self._queue.append((prompt, task))

    async def _make(self, prompt: Prompt) -> Group:
        return await self._collect(prompt)
