"""One group's whole way: K completions, their verdicts, both log-probs, the rewards."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from reward_server.client import VerdictMemory
from trainer.advantages import assemble_rewards, takes_part
from trainer.batch import Sample
from trainer.config import RunSettings
from trainer.group import Group
from trainer.ledger import GroupMemory
from trainer.numerics import measure_gap
from trainer.prompts import Prompt, hash_seed
from trainer.rates import verdicts_per_group
from trainer.shaping import characters_of, group_length_terms, has_length_terms
from trainer.verdicts import VerdictRecord
from wire.errors import PromptDropped, ServiceError
from wire.generation import Completion, PolicyVersion
from wire.judgement import GroupVerdict, Message
from wire.waits import waiter

TIMELY = frozenset({"timeout", "server_lost"})  # reasons for a missing verdict that are no property of the text

Logprobs = tuple[Sequence[float], Sequence[float]]  # own and reference, one entry a completion token


class Rollouts(Protocol):
    """The fleet as a writer of completions; `rollout_server.client.RolloutClient` is the real one."""

    def generate(
        self,
        token_ids: Sequence[int],
        num: int,
        *,
        seed: int,
        salt: Callable[[], str],
        known: Mapping[int, Completion] = ...,
    ) -> AbstractAsyncContextManager[Sequence[asyncio.Future[Completion]]]: ...


class Judge(Protocol):
    """The reward service; `reward_server.client.RewardClient` is the real one."""

    async def group(
        self,
        conversation: Sequence[Message],
        completions: Sequence[asyncio.Future[str | None]],
        seed: int,
        memory: VerdictMemory | None = None,
    ) -> GroupVerdict: ...


class Ledger(Protocol):
    """What was written and judged before; `trainer.ledger.Ledger` is the real one."""

    def recall(self, occurrence: int, oldest_step: int) -> GroupMemory: ...


class Reference(Protocol):
    """The learner's no-grad pass."""

    async def reference(self, samples: Sequence[Sample]) -> list[Logprobs]: ...


@dataclass(frozen=True)
class Judged:
    """A prompt's completions with the judge's verdict; `seconds` of the stages generate and judge."""

    completions: Sequence[Completion]
    texts: Sequence[str]
    verdict: GroupVerdict
    seconds: dict[str, float]


class Collector:
    """Makes groups of prompts.

    Args:
        settings: the run's.
        rollouts, judge, learner: its three collaborators.
        decode: token ids of a completion -> text for the judge.
        version: the version whose weights are live.
        learner_version: the version whose weights the learner holds, or is making.
        ledger: recalls what was there before, and keeps what comes.
    """

    def __init__(
        self,
        settings: RunSettings,
        rollouts: Rollouts,
        judge: Judge,
        learner: Reference,
        decode: Callable[[Sequence[int]], str],
        version: Callable[[], PolicyVersion],
        learner_version: Callable[[], PolicyVersion],
        ledger: Ledger,
    ) -> None:
        self._settings, self._rollouts, self._judge, self._learner = settings, rollouts, judge, learner
        self._ledger = ledger
        self._decode, self._version, self._learner_version = decode, version, learner_version
        per_step = settings.prompts_per_step * verdicts_per_group(settings)
        self.verdicts = VerdictRecord(settings.judge_max_unreadable, per_step)  # of training, held-out prompts excluded
        self._life = secrets.token_hex(8)
        self.num_at: Counter[str] = Counter()  # groups at each stage: who waits for whom

    def _salt(self) -> str:
        """Keeps cached prefixes of different weights apart. Two runs over the same replicas have the same labels for
        different weights, so the label alone would not do. vLLM refuses a salt with a slash."""
        return f"{self._life}-{self._version().label}"

    def slowest(self) -> str:
        """The stage that most groups are at."""
        return max(self.num_at, key=lambda stage: self.num_at[stage], default="nobody")

    async def judged(self, prompt: Prompt, *, purpose: str = "train", memory: GroupMemory | None = None) -> Judged:
        """Completions and the judge's verdict. Each pair is judged as soon as both are written.

        `memory` holds what is there already, and keeps what comes.
        """
        settings = self._settings
        seed = hash_seed(settings.seed, purpose, prompt.occurrence, self._version().label)
        pairing_seed = hash_seed(settings.seed, purpose, prompt.occurrence)
        conversation = [Message(**turn) for turn in prompt.conversation]
        known = memory.completions if memory else {}
        generating = self._rollouts.generate(prompt.token_ids, settings.rloo_k, seed=seed, salt=self._salt, known=known)
        seconds: dict[str, float] = {}
        async with generating as futures:
            if memory is not None:
                for index in set(range(settings.rloo_k)).difference(known):
                    futures[index].add_done_callback(partial(_keep, memory))
            texts = [self._text(future) for future in futures]
            judging = asyncio.ensure_future(self._judge.group(conversation, texts, pairing_seed, memory))
            try:
                with self._at("replicas", seconds, "generate"):
                    done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
                    for future in done:
                        future.result()  # an exception ends the group, whoever is still in the making
                with self._at("the judge", seconds, "judge"):
                    verdict = await judging
            finally:
                judging.cancel()
                for text in texts:
                    text.cancel()
                await asyncio.gather(judging, *texts, return_exceptions=True)
            completions = [future.result() for future in futures]
        return Judged(completions, [text.result() or "" for text in texts], verdict, seconds)

    def _text(self, future: asyncio.Future[Completion]) -> asyncio.Future[str | None]:
        """The completion's text, as soon as it is there. No task: a group would have as many as completions."""
        text: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        def tell(_: asyncio.Future[Completion]) -> None:
            if text.done():
                return
            try:
                text.set_result(self._decode(future.result().token_ids))
            except asyncio.CancelledError:
                text.cancel()
            except Exception as error:  # noqa: BLE001 - handed on to whoever awaits the text
                text.set_exception(error)

        future.add_done_callback(tell)
        return text

    @contextmanager
    def _at(self, stage: str, seconds: dict[str, float], name: str) -> Iterator[None]:
        self.num_at[stage] += 1
        now = asyncio.get_running_loop().time
        started = now()
        try:
            yield
        finally:
            seconds[name] = now() - started
            self.num_at[stage] -= 1

    async def __call__(self, prompt: Prompt, num_before: int = 0) -> Group:
        """The whole group. At most `num_before` groups are trained on before it, which says how old its completions
        may be now.

        Raises:
            PromptDropped: fewer than two completions have a score (and are not masked, under
                mask_truncated_completions).
            ServiceError: in a deterministic run, a verdict is missing for a reason that lies in time.
        """
        with waiter(f"group {prompt.occurrence}"):
            return await self._made(prompt, num_before)

    async def _made(self, prompt: Prompt, num_before: int) -> Group:
        trained_at = self._version().step + num_before // self._settings.prompts_per_step
        memory = self._ledger.recall(prompt.occurrence, oldest_step=trained_at - self._settings.max_lag)
        judged = await self.judged(prompt, memory=memory)
        self.verdicts.note(judged.verdict, [len(completion.token_ids) for completion in judged.completions])
        if self._settings.deterministic:
            self._refuse_a_loss_to_time(prompt, judged)
        self._drop_if_nothing_to_learn(prompt, judged)
        samples = [Sample(prompt.token_ids, c.token_ids, c.logprobs) for c in judged.completions]
        before = self._learner_version()
        with self._at("the reference pass", judged.seconds, "reference"):
            logprobs = await self._learner.reference(samples)
        # If a step began in between, the pass may have come before it or after it.
        held = before if self._learner_version() == before else None
        return self._assemble(prompt, judged, logprobs, held)

    @staticmethod
    def _refuse_a_loss_to_time(prompt: Prompt, judged: Judged) -> None:
        """A verdict that came too late today may come in time tomorrow: training on without it is another run."""
        lost = Counter(placed.verdict.missing for placed in judged.verdict.verdicts if placed.verdict.missing in TIMELY)
        if lost:
            reasons = ", ".join(f"{count} {reason}" for reason, count in lost.items())
            raise ServiceError(
                f"prompt {prompt.occurrence}: verdicts are missing ({reasons}), and a deterministic run cannot go on "
                "without them; resume it from its last checkpoint, with a longer judge_timeout_s if they came too late"
            )

    def _drop_if_nothing_to_learn(self, prompt: Prompt, judged: Judged) -> None:
        completions, scores = judged.completions, judged.verdict.scores
        if sum(takes_part(c, score, self._settings) for c, score in zip(completions, scores, strict=True)) >= 2:
            return
        num_scores = sum(score is not None for score in scores)
        missing = Counter(placed.verdict.missing for placed in judged.verdict.verdicts if placed.verdict.missing)
        reasons = ", ".join(f"{count} {reason}" for reason, count in missing.items())
        num_cut = sum(not c.finished for c in completions)
        masked = f"; {num_cut} were cut and are masked" if self._settings.mask_truncated_completions else ""
        raise PromptDropped(
            f"prompt {prompt.occurrence}: {num_scores} of {len(completions)} completions have a score "
            f"(missing verdicts: {reasons or 'none'}){masked}"
        )

    def _assemble(
        self, prompt: Prompt, judged: Judged, logprobs: Sequence[Logprobs], held: PolicyVersion | None
    ) -> Group:
        settings = self._settings
        total = np.add.reduce  # as `np.sum`, whose way to it takes longer than a thousand additions
        entropy_K = [-float(total(own)) for own, _ in logprobs]
        kl_K = [-entropy - float(total(ref)) for entropy, (_, ref) in zip(entropy_K, logprobs, strict=True)]
        length_terms_K = self._length_terms(judged)
        scores_K, rewards_K = assemble_rewards(
            judged.verdict.scores, [c.finished for c in judged.completions], kl_K, length_terms_K, settings
        )
        return Group(
            prompt=prompt,
            completions=judged.completions,
            texts=judged.texts,
            verdict=judged.verdict,
            scores_K=scores_K,
            rewards_K=rewards_K,
            kl_K=kl_K,
            entropy_K=entropy_K,
            length_terms_K=length_terms_K,
            seconds=judged.seconds,
            gap=measure_gap(judged.completions, [own for own, _ in logprobs], held),
            scored_by=held,
        )

    def _length_terms(self, judged: Judged) -> list[float]:
        if not has_length_terms(self._settings):
            return [0.0] * len(judged.texts)
        verdict = judged.verdict
        return group_length_terms(
            [characters_of(text) for text in judged.texts],
            [len(completion.token_ids) for completion in judged.completions],
            [score is not None and k not in verdict.unjudged for k, score in enumerate(verdict.scores)],
            self._settings,
        )


def _keep(memory: GroupMemory, future: asyncio.Future[Completion]) -> None:
    if not future.cancelled() and future.exception() is None:
        memory.wrote(future.result())
