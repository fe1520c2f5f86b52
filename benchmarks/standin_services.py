"""A run's judge and learner ranks as the driver sees them: they take their time and compute nothing.

The ranks stand behind the real `trainer.ranks.Learner`, as Ray's actors do; a push's control traffic is real.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

from benchmarks.standin_fleet import StandInSender
from reward_server.client import VerdictMemory
from trainer.batch import MiniBatch, Sample
from trainer.collect import Logprobs
from trainer.stats import StepStats
from wire.judgement import GroupVerdict, Message

VERDICT_SPREAD = 0.5  # sigma of the log-normal, which is cut to a half and to three times the median


class StandInJudge:
    """Gives a group its scores `median_s` seconds after its last completion, log-normal by the pairing's seed."""

    def __init__(self, median_s: float) -> None:
        self._median_s = median_s

    async def group(
        self,
        conversation: Sequence[Message],
        completions: Sequence[asyncio.Future[str | None]],
        seed: int,
        memory: VerdictMemory | None = None,
    ) -> GroupVerdict:
        """As the reward service's."""
        await asyncio.gather(*completions)
        drawn = Random(seed).lognormvariate(math.log(self._median_s), VERDICT_SPREAD)
        await asyncio.sleep(min(max(drawn, self._median_s / 2), 3 * self._median_s))
        return GroupVerdict(scores=tuple(float(i) for i in range(len(completions))), verdicts=())


class StandInRank:
    """A learner rank that sends beside its other work. Its methods are called as an actor's: `rank.step.remote(...)`.

    Args:
        token: the run's access token.
        step_s: seconds of a step.
        reference_s: seconds of a no-grad pass.
    """

    def __init__(self, token: str, *, step_s: float, reference_s: float) -> None:
        self._step_s, self._reference_s = step_s, reference_s
        sender = StandInSender(token)
        self._methods: dict[str, Callable[..., Any]] = {
            "pick_port": self._pick_port,
            "setup": self._setup,
            "reference": self._reference,
            "step": self._step,
            "open_transfer_beside": sender.open_transfer,
            "send_weights_beside": sender.send_weights,
        }

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=self._methods[name])

    async def _pick_port(self) -> int:
        return 1

    async def _setup(self, host: str, port: int) -> dict[str, Any]:
        return {"sends_beside": True}

    async def _reference(self, micro_batches: Sequence[Sequence[Sample]]) -> list[list[Logprobs]]:
        await asyncio.sleep(self._reference_s)
        return [[(sample.sampled_logprobs, sample.sampled_logprobs) for sample in batch] for batch in micro_batches]

    async def _step(self, share: Sequence[MiniBatch]) -> StepStats:
        await asyncio.sleep(self._step_s)
        return StepStats()
