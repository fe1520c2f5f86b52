"""First in, first out, bounded lag.

    prompts --admit--> [ collect | collect | collect ... ] --take (in order of admission)--> step --release-->

At most `capacity` groups are alive, from admission until the weights they helped to make are live. With a capacity of
(max_lag + 1) x prompts_per_step - lookahead no completion can be more than max_lag steps old when it is trained on:
with a lookahead of 0 a group admitted at version v has fewer than capacity groups before it, all of which are taken
within max_lag steps after v. With one of W, up to W that came later may be taken before it, and the capacity is smaller
by as many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from trainer.group import Group
from trainer.prompts import Prompt
from wire.errors import PromptDropped, ServiceError
from wire.waits import waiting

LEAST_DROPS_IN_A_ROW = 16
UNWANTED = "its rewards are all equal"
IN_THE_MAKING = "is in the making"


@dataclass
class _Entry:
    """A group that waits to be taken; `overtaken`: by how many that were admitted later; `is_told`: that it will be."""

    prompt: Prompt
    task: asyncio.Task[Group]
    overtaken: int = 0
    is_told: bool = False


def always(_: Group) -> bool:
    """Every group is wanted."""
    return True


class Pipeline:
    """Keeps up to `capacity` groups in the making.

    Args:
        prompts: the stream to admit from.
        collect: makes a group of a prompt; raises PromptDropped where none comes of it. Its second argument bounds how
            many groups are trained on before this one.
        capacity: groups alive at once.
        lookahead: how many later groups may be taken before one that is not ready.
        is_wanted: whether a group is worth training on; one that is not is passed over, at most as many at a time as
            are taken.
    """

    def __init__(
        self,
        prompts: Iterator[Prompt],
        collect: Callable[[Prompt, int], Awaitable[Group]],
        *,
        capacity: int,
        lookahead: int = 0,
        is_wanted: Callable[[Group], bool] = always,
    ) -> None:
        self._prompts, self._collect, self._capacity = prompts, collect, capacity
        self._lookahead, self._is_wanted = lookahead, is_wanted
        self._queue: list[_Entry] = []
        self._made = asyncio.Event()  # set when the making of any group is over
        self._taken = 0  # groups handed out and not yet released: they still hold their places
        self.num_dropped = 0
        self.num_unwanted = 0
        self._dropped_in_a_row = 0
        self._passed_over: list[tuple[int, str]] = []
        self.next_occurrence = 0  # all prompts before it are used, or passed over: where a restart goes on
        self.taken_ahead: set[int] = set()  # those beyond it that are

    async def __aenter__(self) -> Self:
        self._admit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [entry.task for entry in self._queue]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def num_ready(self) -> int:
        """Groups whose making is over but which were not taken yet."""
        return sum(entry.task.done() for entry in self._queue)

    @property
    def num_alive(self) -> int:
        """Groups that hold a place."""
        return len(self._queue) + self._taken

    async def take(self, num: int, certain: Callable[[Group], None] = lambda _: None) -> list[Group]:
        """The next `num` groups in order of admission; one that is passed over gives its place to the next in order.

        Args:
            num: how many.
            certain: told of each of them once, as soon as it is ready and nothing that may become of the others keeps
                it from being among them.

        Raises:
            ServiceError: so many groups in a row were passed over that no prompt can be the reason.
            whatever else `collect` raised, other than PromptDropped.
        """
        groups: list[Group] = []
        num_unwanted = 0
        while len(groups) < num:
            entry = await self._next_done(num - len(groups), certain)
            try:
                group = entry.task.result()
            except PromptDropped as error:
                self.num_dropped += 1
                self._refuse_too_many(error)
                self._pass_over(entry, str(error))
                continue
            if num_unwanted < num and not self._is_wanted(group):  # where all are alike there is no end of them
                num_unwanted += 1
                self.num_unwanted += 1
                self._pass_over(entry, UNWANTED)
                continue
            self._tell(entry, certain)
            self._overtake(entry)
            self._remove(entry)
            self._taken += 1
            self._dropped_in_a_row = 0
            groups.append(group)
        return groups

    def drain_passed_over(self) -> list[tuple[int, str]]:
        """(occurrence, reason) of those that were passed over since the last call."""
        passed_over, self._passed_over = self._passed_over, []
        return passed_over

    def release(self, num: int) -> None:
        """The weights that `num` taken groups helped to make are live: their places are free."""
        self._taken -= num
        self._admit()

    async def _next_done(self, num: int, certain: Callable[[Group], None]) -> _Entry:
        """The first that is ready, among those that may be taken; waits for one.

        Of the first `num`, of which so many are wanted yet, each that is ready and wanted will be taken: those before
        it are fewer, and those after it are not taken before it.
        """
        while True:
            window = self._may_be_taken()
            for entry in window:
                if entry.task.done():
                    return entry
            with waiting(f"group {window[0].prompt.occurrence}", IN_THE_MAKING):
                while not any(entry.task.done() for entry in window):
                    for entry in self._queue[:num]:
                        if not entry.is_told and self._is_ready(entry):
                            self._tell(entry, certain)
                    self._made.clear()
                    await self._made.wait()

    def _is_ready(self, entry: _Entry) -> bool:
        """Whether it can be taken, and will not be passed over."""
        task = entry.task
        return task.done() and task.exception() is None and self._is_wanted(task.result())

    def _tell(self, entry: _Entry, certain: Callable[[Group], None]) -> None:
        if not entry.is_told:
            entry.is_told = True
            certain(entry.task.result())

    def _may_be_taken(self) -> list[_Entry]:
        """The first, and those after it up to the first that must not be overtaken any more."""
        window: list[_Entry] = []
        for entry in self._queue:
            window.append(entry)
            if entry.overtaken >= self._lookahead:
                break
        return window

    def _refuse_too_many(self, error: PromptDropped) -> None:
        """One prompt's misfortune does not strike so often in a row: the judge or the fleet is sick."""
        self._dropped_in_a_row += 1
        if self._dropped_in_a_row >= max(2 * self._capacity, LEAST_DROPS_IN_A_ROW):
            raise ServiceError(f"{self._dropped_in_a_row} groups in a row were dropped; the last: {error}") from error

    def _pass_over(self, entry: _Entry, reason: str) -> None:
        """Its place is free at once."""
        self._passed_over.append((entry.prompt.occurrence, reason))
        self._remove(entry)
        self._admit()

    def _overtake(self, entry: _Entry) -> None:
        for earlier in self._queue[: self._queue.index(entry)]:
            earlier.overtaken += 1

    def _remove(self, entry: _Entry) -> None:
        """It is used, or passed over."""
        self._queue.remove(entry)
        self.taken_ahead.add(entry.prompt.occurrence)
        first = self._queue[0].prompt.occurrence if self._queue else max(self.taken_ahead) + 1
        self.next_occurrence = max(self.next_occurrence, first)
        self.taken_ahead = {occurrence for occurrence in self.taken_ahead if occurrence >= first}

    def _admit(self) -> None:
        while self.num_alive < self._capacity:
            prompt = next(self._prompts)
            making = self._make(prompt, self.num_alive + self._lookahead)
            task = asyncio.create_task(making, name=f"group-{prompt.occurrence}")
            task.add_done_callback(lambda _: self._made.set())
            self._queue.append(_Entry(prompt, task))

    async def _make(self, prompt: Prompt, num_before: int) -> Group:
        return await self._collect(prompt, num_before)
