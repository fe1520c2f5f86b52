"""The policy against the one before training, while it trains.

    version 0 is live ---> the initial answers, kept on disk
    every eval_steps  ---> answers of the live policy --both orders--> judge ---> win rate, score, length
                           (beside training: skipped where the one before still runs)      '-> second judge

This is when: each evaluation is a `trainer.round.Round`, a task of its own that holds nothing up. While it lasts pushes
go on, so an answer may be of several versions; the oldest and the newest of them are part of the result
(`trainer.evaluation`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainer.comparison import Judge
from trainer.config import RunSettings
from trainer.contestant import Contestant, Rollouts
from trainer.evaluate import Truth
from trainer.evaluation import Evaluation
from trainer.initial_answers import Answer, read_answers, write_answers
from trainer.pipeline import IN_THE_MAKING
from trainer.prompts import Prompt
from trainer.round import Round, Say, end
from wire.generation import PolicyVersion
from wire.waits import waiter, waiting


class Contest:
    """The evaluations of one run; an asynchronous context manager that ends what is under way.

    Args:
        settings: the run's. With `eval_steps` 0, or without prompts, nothing is done.
        prompts: the held-out prompts.
        rollouts: writes answers.
        judges: who compares: the judge, and a second one where there is one.
        decode: token ids of an answer -> text.
        stop_token_ids: ids that end an answer.
        version: the version whose weights are live.
        say: told of what went wrong.
        truth: the true score of an answer, where it is known.
    """

    def __init__(
        self,
        settings: RunSettings,
        prompts: Sequence[Prompt],
        rollouts: Rollouts,
        judges: Sequence[Judge],
        *,
        decode: Callable[[Sequence[int]], str],
        stop_token_ids: Sequence[int],
        version: Callable[[], PolicyVersion],
        say: Say,
        truth: Truth | None = None,
    ) -> None:
        self._settings, self._prompts, self._judges = settings, list(prompts), judges
        self._version, self._say, self._truth = version, say, truth
        self._contestant = Contestant(settings, rollouts, decode=decode, stop_token_ids=stop_token_ids, version=version)
        self._initial: list[Answer] = []
        self._round: Round | None = None
        self._running: asyncio.Task[Evaluation] | None = None
        self._running_step = -1
        self._fresh: dict[str, float] = {}  # metrics that nobody has fetched
        self.num_skipped = 0
        self.last: Evaluation | None = None

    @property
    def is_on(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._settings.eval_steps and self._prompts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._cancel()

    async def meet(self, folder: Path | None = None) -> None:
        """Have the initial policy's answers: made now, where no step was made yet, else read from `folder`.

        Raises:
            ConfigError: the run is resumed and the file is not there, or not of these prompts.
            ServiceError: no replica answered a prompt.
        """
        if not self.is_on:
            return
        if self._version().step and folder is not None:
            self._initial = await asyncio.to_thread(read_answers, folder, self._prompts, self._contestant.sampling)
            return
        with waiter("evaluation 0"):
            asked = [self._contestant.answer(prompt, background=None) for prompt in self._prompts]
            tasks = [asyncio.create_task(answer) for answer in asked]
        try:
            with waiting("evaluation 0", IN_THE_MAKING):
                self._initial = list(await asyncio.gather(*tasks))
        finally:
            await end(tasks)
        if folder is not None:
            await asyncio.to_thread(write_answers, folder, self._initial)

    def begin_if_due(self, step: int) -> None:
        """A step is done: begin an evaluation where it is time for one, unless the one before still runs. That of the
        last step is for `finish`."""
        self._collect()
        if self._round is not None:
            self._round.step_done()
        if not self.is_on or step % self._settings.eval_steps or step >= self._settings.num_steps:
            return
        if self._running is not None:
            self._skip(f"evaluation {step} is left out: that of step {self._running_step} still runs")
        else:
            self._begin(step, beside_training=True)

    async def finish(self, step: int) -> None:
        """After the last step: the last evaluation is of the final policy. Waits for it, up to `eval_wait_s`."""
        self._collect()
        if not self.is_on:
            return
        if self._running is not None and self._running_step != step:
            self._skip(f"evaluation {self._running_step} is left out: training is done, and the final policy's counts")
            await self._cancel()
        if self._running is None and (self.last is None or self.last.step != step):
            self._begin(step, beside_training=False)
        if self._running is not None:
            with waiting(f"evaluation {step}", IN_THE_MAKING):
                await asyncio.wait([self._running], timeout=self._settings.eval_wait_s)
            if not self._running.done():
                self._skip(
                    f"evaluation {step} is left out: it did not end within {self._settings.eval_wait_s:g} s; raise "
                    "eval_wait_s"
                )
                await self._cancel()
            self._collect()

    def metrics(self) -> dict[str, float]:
        """What came since the last call; with each, how many were left out so far."""
        self._collect()
        fresh, self._fresh = self._fresh, {}
        return fresh

    def summary(self) -> dict[str, Any]:
        """The last evaluation, None where there is none, for summary.json."""
        return {
            "evaluation": None if self.last is None else asdict(self.last),
            "evaluations_skipped": self.num_skipped,
        }

    # --- what became of it

    def _begin(self, step: int, *, beside_training: bool) -> None:
        self._running_step = step
        self._round = Round(
            self._settings,
            step,
            list(zip(self._prompts, self._initial, strict=True)),
            self._contestant,
            self._judges,
            truth=self._truth,
            say=self._say,
            beside_training=beside_training,
        )
        with waiter(f"evaluation {step}"):
            self._running = asyncio.create_task(self._round.result())

    def _collect(self) -> None:
        """Take in what the one that ran has come to. A defect that it ended of is raised."""
        if self._running is not None and self._running.done():
            done, self._running, self._round = self._running, None, None
            self.last = done.result()
            self._fresh |= self.last.metrics() | self._skipped()

    def _skip(self, why: str) -> None:
        self.num_skipped += 1
        self._fresh |= self._skipped()
        self._say(why)

    def _skipped(self) -> dict[str, float]:
        return {"eval/skipped": float(self.num_skipped)}

    async def _cancel(self) -> None:
        if self._running is not None:
            await end([self._running])
            self._running = self._round = None
