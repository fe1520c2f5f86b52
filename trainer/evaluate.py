"""Held-out prompts, answered by the current policy and judged like any group.

`python -m trainer.evaluate --config FILE --checkpoint PATH --export BENCHMARK --questions FILE --output FILE` lets the
policy of a checkpoint answer a benchmark's questions instead; see `trainer/answering.py`.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.bar import progress_bar
from trainer.collect import Collector, Judged
from trainer.pipeline import IN_THE_MAKING
from trainer.prompts import Prompt
from wire.errors import ConfigError
from wire.settings import run_program
from wire.waits import waiter, waiting

Truth = Callable[[list[dict[str, str]], str], float]


@dataclass(frozen=True)
class HeldOut:
    """Means over the completions of the held-out prompts: the judge's score, and the true one where it is known.

    `num_missing` of `num_completions` have no score and take no part in the judge's mean.
    """

    score: float | None
    truth: float | None
    num_completions: int
    num_missing: int


def load_truth(name: str | None) -> Truth | None:
    """The function that `module:function` names.

    Raises:
        ConfigError: there is none.
    """
    if name is None:
        return None
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"truth_function {name!r} cannot be loaded: {error}; give module:function") from error


async def evaluate_held_out(
    collector: Collector, prompts: Sequence[Prompt], truth: Truth | None, title: str
) -> HeldOut:
    """Answer and judge every prompt K times at the training's own sampling."""
    scores: list[float] = []
    truths: list[float] = []
    num = 0
    tasks = [_begun(collector, prompt) for prompt in prompts]
    try:
        with progress_bar(total=len(tasks), desc=title, unit="prompt", leave=False, mininterval=1.0) as bar:
            for prompt, task in zip(prompts, tasks, strict=True):
                with waiting(_name(prompt), IN_THE_MAKING):
                    judged = await task
                bar.update()
                num += len(judged.texts)
                scores += [score for score in judged.verdict.scores if score is not None]
                if truth is not None:
                    truths += [truth(list(prompt.conversation), text) for text in judged.texts]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return HeldOut(_mean(scores), _mean(truths), num, num - len(scores))


def _name(prompt: Prompt) -> str:
    return f"held-out {prompt.occurrence}"


def _begun(collector: Collector, prompt: Prompt) -> asyncio.Task[Judged]:
    with waiter(_name(prompt)):
        return asyncio.create_task(collector.judged(prompt, purpose="held-out"))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def main(argv: Sequence[str] | None = None) -> int:
    """Answer a benchmark's questions; `--help` lists the settings."""
    from trainer.answering import answer_benchmark  # both import this module, through the preflight
    from trainer.main import say

    return answer_benchmark(argv, say)


if __name__ == "__main__":
    run_program(main)
