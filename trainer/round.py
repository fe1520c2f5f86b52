"""One evaluation under way: each held-out prompt is answered by the live policy, and compared as soon as it is.

Its requests give way to training's, few of them at once, for what is begun is in the way of a batch that comes then.
Where that leaves them too far behind, some lose their patience (`trainer.patience`): so it ends within about
`eval_steps` steps, unless that would take more than `eval_share` of what training asks of fleet or judge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from trainer.comparison import UNKNOWN, Compared, Judge, compare
from trainer.config import RunSettings
from trainer.contestant import Contestant
from trainer.evaluate import Truth
from trainer.evaluation import Evaluation, Row
from trainer.initial_answers import Answer
from trainer.patience import Patience
from trainer.prompts import Prompt, hash_seed
from trainer.rates import verdicts_per_group
from wire.errors import ServiceError
from wire.judgement import Message

ANSWERS_AT_ONCE = 4  # that give way to training
COMPARISONS_AT_ONCE = 2  # of each judge, likewise
VERDICTS_A_COMPARISON = 2  # one for each order
UNDER_WAY_WITHIN = 0.75  # of the steps between two evaluations; the rest is for the slowest of them

Say = Callable[[str], None]


class Round:
    """One evaluation.

    Args:
        settings: the run's.
        step: of the policy with which it begins.
        pairs: each held-out prompt with the initial policy's answer.
        contestant: who answers.
        judges: who compares: the judge, and a second one where there is one.
        truth: the true score of an answer, where it is known.
        say: told of what went wrong.
        beside_training: whether its requests give way; else they go all at once.
    """

    def __init__(
        self,
        settings: RunSettings,
        step: int,
        pairs: Sequence[tuple[Prompt, Answer]],
        contestant: Contestant,
        judges: Sequence[Judge],
        *,
        truth: Truth | None,
        say: Say,
        beside_training: bool,
    ) -> None:
        self._seed, self._step, self._pairs = settings.seed, step, pairs
        self._contestant, self._judges, self._truth, self._say = contestant, judges, truth, say
        self._problems: list[ServiceError] = []
        patience_of = partial(_patience_beside_training, settings) if beside_training else _no_patience
        verdicts = settings.prompts_per_step * verdicts_per_group(settings)
        self._writing = patience_of(len(pairs), ANSWERS_AT_ONCE, settings.completions_per_step)
        self._judging = [
            patience_of(len(pairs), COMPARISONS_AT_ONCE, verdicts / VERDICTS_A_COMPARISON) for _ in self._judges
        ]

    async def result(self) -> Evaluation:
        """Have all prompts answered and compared."""
        tasks = [asyncio.create_task(self._row(prompt, initial)) for prompt, initial in self._pairs]
        try:
            rows = await asyncio.gather(*tasks)
        finally:
            await end(tasks)
        if self._problems:
            self._say(
                f"evaluation {self._step}: {len(self._problems)} answers or comparisons failed; the first: "
                f"{self._problems[0]}"
            )
        return Evaluation.of(self._step, rows)

    def step_done(self) -> None:
        """Training has done a step."""
        for patience in (self._writing, *self._judging):
            patience.step_done()

    async def _row(self, prompt: Prompt, initial: Answer) -> Row:
        initial_truth = self._true_score(prompt, initial)
        try:
            async with self._writing.turn() as hurry:
                answer = await self._contestant.answer(prompt, background=hurry)
        except ServiceError as error:
            self._problems.append(error)
            return Row(initial=initial, initial_truth=initial_truth)
        asked = zip(self._judges, self._judging, strict=True)
        found = await asyncio.gather(
            *(self._compared(judge, patience, prompt, answer, initial) for judge, patience in asked)
        )
        compared, second = [*found, UNKNOWN][:2]
        return Row(answer, initial, compared, second, self._true_score(prompt, answer), initial_truth)

    async def _compared(
        self, judge: Judge, patience: Patience, prompt: Prompt, answer: Answer, initial: Answer
    ) -> Compared:
        seed = hash_seed(self._seed, "eval", prompt.occurrence)
        conversation = [Message(**turn) for turn in prompt.conversation]
        try:
            async with patience.turn() as hurry:
                return await compare(judge, conversation, answer.text, initial.text, seed=seed, background=hurry)
        except ServiceError as error:
            self._problems.append(error)
            return UNKNOWN

    def _true_score(self, prompt: Prompt, answer: Answer) -> float | None:
        return None if self._truth is None else self._truth(list(prompt.conversation), answer.text)


def _patience_beside_training(settings: RunSettings, num: int, at_once: int, of_training: float) -> Patience:
    """`of_training`: requests of this kind that training makes a step."""
    window = max(1.0, UNDER_WAY_WITHIN * settings.eval_steps)
    return Patience(num, at_once=at_once, window=window, per_step=settings.eval_share * of_training)


def _no_patience(num: int, at_once: int, of_training: float) -> Patience:
    """All may go at once."""
    patience = Patience(num, at_once=num, window=1, per_step=num)
    patience.step_done()
    return patience


async def end(tasks: Sequence[asyncio.Task[object]]) -> None:
    """Cancel what still runs of these, and wait for that."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
