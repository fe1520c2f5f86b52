"""The learner ranks of a simulated run: they take the time that the rates say and compute nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from trainer.batch import MiniBatch, Sample
from trainer.collect import Logprobs
from trainer.rates import Layout
from trainer.stand_ins import Meter
from trainer.stats import StepStats
from wire.generation import PolicyVersion
from wire.membership import Member, Outcome, TransferReport


class SimulatedRank:
    """A learner rank. Its methods are called as an actor's: `rank.step.remote(...)`.

    Args:
        layout: its times.
        load: told of the members that hold a version once it was sent.
    """

    def __init__(self, layout: Layout, load: Callable[[Sequence[Member], PolicyVersion], None]) -> None:
        self._layout, self._load = layout, load
        self._members: Sequence[Member] = ()
        self.meters = {name: Meter() for name in ("reference", "step", "push")}
        self.meter = Meter()  # of all together: passes go beside a push
        self._begun = 0.0  # share of the coming step that was done

    def __getattr__(self, name: str) -> Any:
        method = getattr(type(self), f"_{name.removesuffix('_beside')}")
        return SimpleNamespace(remote=lambda *arguments: method(self, *arguments))

    async def _pick_port(self) -> int:
        return 1

    async def _setup(self, host: str, port: int) -> dict[str, Any]:
        return {"sends_beside": self._layout.push_beside}

    async def _reference(self, micro_batches: Sequence[Sequence[Sample]]) -> list[list[Logprobs]]:
        with self.meters["reference"].used(), self.meter.used():
            await asyncio.sleep(self._layout.reference_s * sum(len(batch) for batch in micro_batches))
        return [[(sample.sampled_logprobs, sample.sampled_logprobs) for sample in batch] for batch in micro_batches]

    async def _accumulate(self, part: MiniBatch) -> None:
        share = sum(map(len, part.micro_batches)) * self._layout.ranks / self._layout.per_step
        self._begun += share
        with self.meters["step"].used(), self.meter.used():
            await asyncio.sleep(self._layout.step_s * share)

    async def _step(self, share: Sequence[MiniBatch]) -> StepStats:
        left, self._begun = max(0.0, 1.0 - self._begun), 0.0
        with self.meters["step"].used(), self.meter.used():
            await asyncio.sleep(self._layout.step_s * left)
        return StepStats()

    async def _open_transfer(self, members: Sequence[Member], timeout_s: float) -> TransferReport:
        self._members = members
        return _report(members)

    async def _send_weights(self, version: PolicyVersion, push_id: str, timeout_s: float) -> TransferReport:
        with self.meters["push"].used(), self.meter.used():
            await asyncio.sleep(self._layout.push_s)
        self._load(self._members, version)
        return _report(self._members)


def _report(members: Sequence[Member]) -> TransferReport:
    return TransferReport({member.url: Outcome.DONE for member in members}, {})
