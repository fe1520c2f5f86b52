"""The policy against the one before training, while it trains.

    version 0 is live ---> the initial answers, kept on disk
    every eval_steps  ---> answers of the live policy --both orders--> judge ---> win rate, score, length
                           (beside training: skipped where the one before still runs)      '-> second judge

Nothing of it holds training up. Its answers are written where the fleet has room, its verdicts are given where the
judge has, and few of both at once, for what is begun is in the way of a batch that comes then. Where training leaves
no room, an evaluation takes until the end of the run. While it lasts pushes go on, so an answer may be of several
versions; the oldest and the newest of them are part of the result.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Protocol, Self

from rollout_server.client import Sampling
from trainer.comparison import UNKNOWN, Compared, Judge, compare
from trainer.config import RunSettings
from trainer.initial_answers import Answer, read_answers, write_answers
from trainer.pipeline import IN_THE_MAKING
from trainer.prompts import Prompt, hash_seed
from trainer.win_rate import length_controlled_win_rate, wilson_interval, win_rate
from wire.errors import ServiceError
from wire.generation import Completion, PolicyVersion
from wire.judgement import Message
from wire.waits import waiter, waiting

ANSWERS_AT_ONCE = 4  # beside training
VERDICTS_AT_ONCE = 2  # prompts that each judge compares at once, beside training

Say = Callable[[str], None]


class Rollouts(Protocol):
    """The fleet as a writer of answers; `rollout_server.client.RolloutClient` is the real one."""

    def generate(
        self,
        token_ids: Sequence[int],
        num: int,
        *,
        seed: int,
        salt: Callable[[], str],
        sampling: Sampling | None = ...,
        background: bool = ...,
    ) -> AbstractAsyncContextManager[Sequence[asyncio.Future[Completion]]]: ...


@dataclass(frozen=True)
class Row:
    """One prompt's part of an evaluation; what could not be had is None. `second` is the second judge's word."""

    answer: Answer | None = None
    initial: Answer | None = None
    compared: Compared = UNKNOWN
    second: Compared = UNKNOWN


@dataclass(frozen=True)
class Evaluation:
    """What came of one evaluation.

    Rates and shares are 0..1, scores 1..5, lengths in tokens; None where no prompt gave any. `step` is the policy's
    when it began, `oldest_version` and `newest_version` wrote the answers. `missing` is the share of prompts without an
    outcome: no answer, or no verdict in either order. They take no part in the win rates.
    """

    step: int
    num_prompts: int
    oldest_version: str | None
    newest_version: str | None
    win_rate: float | None
    win_rate_low: float | None
    win_rate_high: float | None
    length_controlled_win_rate: float | None
    score: float | None
    length: float | None
    initial_length: float | None
    truncated: float | None
    missing: float
    second_win_rate: float | None
    second_score: float | None
    judge_gap: float | None

    @classmethod
    def of(cls, step: int, rows: Sequence[Row]) -> Evaluation:
        """The sums of its rows."""
        decided = [
            (row.compared.outcome, row.answer.num_tokens - row.initial.num_tokens)
            for row in rows
            if row.answer is not None and row.initial is not None and row.compared.outcome is not None
        ]
        outcomes = [outcome for outcome, _ in decided]
        rate = win_rate(outcomes) if outcomes else None
        low, high = (None, None) if rate is None else wilson_interval(rate, len(outcomes))
        controlled = length_controlled_win_rate(outcomes, [longer for _, longer in decided]) if decided else None
        answers = [row.answer for row in rows if row.answer is not None]
        versions = sorted(PolicyVersion.parse(label) for answer in answers for label in (answer.oldest, answer.newest))
        second_rate = _mean(row.second.outcome for row in rows)
        return cls(
            step=step,
            num_prompts=len(rows),
            oldest_version=versions[0].label if versions else None,
            newest_version=versions[-1].label if versions else None,
            win_rate=rate,
            win_rate_low=low,
            win_rate_high=high,
            length_controlled_win_rate=controlled,
            score=_mean(row.compared.score for row in rows),
            length=_mean(answer.num_tokens for answer in answers),
            initial_length=_mean(row.initial.num_tokens for row in rows if row.initial is not None),
            truncated=_mean(not answer.finished for answer in answers),
            missing=1 - len(outcomes) / len(rows),
            second_win_rate=second_rate,
            second_score=_mean(row.second.score for row in rows),
            judge_gap=None if rate is None or second_rate is None else rate - second_rate,
        )

    def metrics(self) -> dict[str, float]:
        """By the names of TensorBoard; what is not known is not there."""
        found: dict[str, float | None] = {
            "eval/step": self.step,
            "eval/win_rate": self.win_rate,
            "eval/win_rate_low": self.win_rate_low,
            "eval/win_rate_high": self.win_rate_high,
            "eval/length_controlled_win_rate": self.length_controlled_win_rate,
            "eval/score": self.score,
            "eval/length": self.length,
            "eval/truncated": self.truncated,
            "eval/missing": self.missing,
            "eval/second_win_rate": self.second_win_rate,
            "eval/second_score": self.second_score,
            "eval/judge_gap": self.judge_gap,
        }
        return {name: float(value) for name, value in found.items() if value is not None}


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
    ) -> None:
        self._settings, self._prompts, self._rollouts, self._judges = settings, list(prompts), rollouts, judges
        self._decode, self._version, self._say = decode, version, say
        self._sampling = Sampling(
            settings.response_length, settings.eval_temperature, tuple(stop_token_ids), settings.eval_top_p
        )
        self._salt_of_life = secrets.token_hex(8)
        self._initial: list[Answer] = []
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
            self._initial = await asyncio.to_thread(read_answers, folder, self._prompts, self._sampling)
            return
        with waiter("evaluation 0"):
            tasks = [asyncio.create_task(self._answer(prompt, background=False)) for prompt in self._prompts]
        try:
            with waiting("evaluation 0", IN_THE_MAKING):
                self._initial = list(await asyncio.gather(*tasks))
        finally:
            await _end(tasks)
        if folder is not None:
            await asyncio.to_thread(write_answers, folder, self._initial)

    def begin_if_due(self, step: int) -> None:
        """A step is done: begin an evaluation where it is time for one, unless the one before still runs. That of the
        last step is for `finish`."""
        self._collect()
        if not self.is_on or step % self._settings.eval_steps or step >= self._settings.num_steps:
            return
        if self._running is not None:
            self._skip(f"evaluation {step} is left out: that of step {self._running_step} still runs")
        else:
            self._begin(step, background=True)

    async def finish(self, step: int) -> None:
        """After the last step: the last evaluation is of the final policy. Waits for it, up to `eval_wait_s`."""
        self._collect()
        if not self.is_on:
            return
        if self._running is not None and self._running_step != step:
            self._skip(f"evaluation {self._running_step} is left out: training is done, and the final policy's counts")
            await self._cancel()
        if self._running is None and (self.last is None or self.last.step != step):
            self._begin(step, background=False)
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

    # --- one evaluation

    def _begin(self, step: int, *, background: bool) -> None:
        self._running_step = step
        with waiter(f"evaluation {step}"):
            self._running = asyncio.create_task(self._evaluate(step, background=background))

    async def _evaluate(self, step: int, *, background: bool) -> Evaluation:
        everybody = len(self._prompts)
        writing = asyncio.Semaphore(ANSWERS_AT_ONCE if background else everybody)
        judging = [asyncio.Semaphore(VERDICTS_AT_ONCE if background else everybody) for _ in self._judges]
        problems: list[ServiceError] = []

        async def row(prompt: Prompt, initial: Answer) -> Row:
            try:
                async with writing:
                    answer = await self._answer(prompt, background=background)
            except ServiceError as error:
                problems.append(error)
                return Row(initial=initial)
            asked = zip(self._judges, judging, strict=True)
            found = await asyncio.gather(*(said(judge, places, prompt, answer, initial) for judge, places in asked))
            return Row(answer, initial, *found)

        async def said(judge: Judge, places: asyncio.Semaphore, prompt: Prompt, answer: Answer, initial: Answer) -> Any:
            seed = hash_seed(self._settings.seed, "eval", prompt.occurrence)
            conversation = [Message(**turn) for turn in prompt.conversation]
            try:
                async with places:
                    return await compare(
                        judge, conversation, answer.text, initial.text, seed=seed, background=background
                    )
            except ServiceError as error:
                problems.append(error)
                return UNKNOWN

        pairs = zip(self._prompts, self._initial, strict=True)
        tasks = [asyncio.create_task(row(prompt, initial)) for prompt, initial in pairs]
        try:
            rows = await asyncio.gather(*tasks)
        finally:
            await _end(tasks)
        if problems:
            self._say(f"evaluation {step}: {len(problems)} answers or comparisons failed; the first: {problems[0]}")
        return Evaluation.of(step, rows)

    async def _answer(self, prompt: Prompt, *, background: bool) -> Answer:
        seed = hash_seed(self._settings.seed, "eval", prompt.occurrence, self._version().label)
        writing = self._rollouts.generate(
            prompt.token_ids, 1, seed=seed, salt=self._salt, sampling=self._sampling, background=background
        )
        async with writing as futures:
            completion = await asyncio.shield(futures[0])
        return Answer.of(prompt, self._sampling, completion, self._decode(completion.token_ids))

    def _salt(self) -> str:
        """See `trainer.collect.Collector`: of its own, since what is cached for it is of no use to training."""
        return f"{self._salt_of_life}-{self._version().label}"

    # --- what became of it

    def _collect(self) -> None:
        """Take in what the one that ran has come to. A defect that it ended of is raised."""
        if self._running is not None and self._running.done():
            done, self._running = self._running, None
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
            await _end([self._running])
            self._running = None


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return fmean(known) if known else None
