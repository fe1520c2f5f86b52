"""A step's gradient, of which a part is computed before the last of its groups is there.

    group 3 --+                      group 0 (its last verdict is late)
    group 1 --+-- accumulate         |
    group 2 --+-- accumulate         +-- step: the rest's gradient, then the optimizer

A step waits for the slowest of its groups, and the learner with it. A group that is certain to be among them needs no
other for its gradient, as long as nothing is normalised over the step and the loss is divided by a number that is known
before: all completions of the step (`RunSettings.loss_denominator`). What is left to do after the last verdict is then
a micro-step's worth and the update.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from trainer.advantages import step_advantages
from trainer.batch import MiniBatch, build_batch
from trainer.config import RunSettings
from trainer.group import Group
from trainer.stats import StepStats


class Stepper(Protocol):
    """The learner as the loop sees it; `trainer.ranks.Learner` is the real one."""

    @property
    def num_ranks(self) -> int: ...

    async def accumulate(self, batch: Sequence[MiniBatch]) -> None: ...

    async def step(self, batch: Sequence[Sequence[MiniBatch]]) -> StepStats: ...


class Accumulation:
    """One step's gradient. Entered before the first group is there; on leaving, what is still computed is given up.

    Args:
        learner: computes.
        settings: the run's; `begins_early` says whether anything is begun before `finish`.
    """

    def __init__(self, learner: Stepper, settings: RunSettings) -> None:
        self._learner, self._settings = learner, settings
        self._certain = 0
        self._gathered: list[Group] = []
        self._begun: set[int] = set()
        self._is_whole = False
        self._work: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    def offer(self, group: Group) -> None:
        """This group is certain to be among the step's. The last is left to `finish`: an update needs a gradient."""
        self._certain += 1
        if not self._settings.begins_early or self._certain == self._settings.prompts_per_step:
            return
        self._gathered += step_advantages([group], self._settings)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._accumulate(self._work))

    async def _accumulate(self, before: asyncio.Task[None] | None) -> None:
        """All that is gathered, as long as it is a micro-step's worth and the others are not there yet."""
        if before is not None:
            await before  # it is over; what failed in it must not be forgotten
        while not self._is_whole and self._num_gathered >= self._settings.completions_per_micro_step:
            groups, self._gathered = self._gathered, []
            batch = self._batch(groups)
            if batch[0]:  # a mini-batch a rank; none where nothing of it is trained on
                self._begun |= {group.prompt.occurrence for group in groups}
                await self._learner.accumulate([share[0] for share in batch])

    @property
    def _num_gathered(self) -> int:
        return sum(len(group.completions) for group in self._gathered)

    async def finish(self, groups: Sequence[Group]) -> StepStats:
        """Take the step.

        Args:
            groups: all of it, with their advantages.

        Raises:
            ServiceError: a part that was begun, or the step, failed.
        """
        self._is_whole = True
        if self._work is not None:
            await self._work
        batch = self._batch([group for group in groups if group.prompt.occurrence not in self._begun])
        if self._begun and not batch[0]:
            batch = [[MiniBatch([[]], self._settings.completions_per_step)] for _ in batch]
        return await self._learner.step(batch)

    def _batch(self, groups: Sequence[Group]) -> list[list[MiniBatch]]:
        return build_batch(
            [sample for group in groups for sample in group.samples()],
            num_ranks=self._learner.num_ranks,
            num_mini_batches=self._settings.num_mini_batches,
            token_budget=self._settings.microbatch_tokens,
            denominator=self._settings.loss_denominator,
        )
