"""The policy as it answers held-out prompts: one answer each, drawn as the settings of evaluations say."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from rollout_server.client import Sampling
from trainer.config import RunSettings
from trainer.initial_answers import Answer, sampling_of
from trainer.prompts import Prompt, hash_seed
from wire.generation import Completion, PolicyVersion


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
        background: asyncio.Event | None = ...,
    ) -> AbstractAsyncContextManager[Sequence[asyncio.Future[Completion]]]: ...


class Contestant:
    """Whoever is live, over the fleet.

    Args:
        settings: seed, and how answers are drawn.
        rollouts: writes them.
        decode: token ids of an answer -> text.
        stop_token_ids: ids that end an answer.
        version: the version whose weights are live.
    """

    def __init__(
        self,
        settings: RunSettings,
        rollouts: Rollouts,
        *,
        decode: Callable[[Sequence[int]], str],
        stop_token_ids: Sequence[int],
        version: Callable[[], PolicyVersion],
    ) -> None:
        self._seed, self._rollouts, self._decode, self._version = settings.seed, rollouts, decode, version
        self.sampling = sampling_of(settings, stop_token_ids)
        self._salt_of_life = secrets.token_hex(8)

    async def answer(self, prompt: Prompt, *, background: asyncio.Event | None) -> Answer:
        """The answer to one prompt; with an event, of less importance than training until that is set.

        Raises:
            ServiceError: no replica wrote it.
        """
        seed = hash_seed(self._seed, "eval", prompt.occurrence, self._version().label)
        writing = self._rollouts.generate(
            prompt.token_ids, 1, seed=seed, salt=self._salt, sampling=self.sampling, background=background
        )
        async with writing as futures:
            completion = await asyncio.shield(futures[0])
        return Answer.of(prompt, self.sampling, completion, self._decode(completion.token_ids))

    def _salt(self) -> str:
        """See `trainer.collect.Collector`: of its own, since what is cached for it is of no use to training."""
        return f"{self._salt_of_life}-{self._version().label}"
