"""The learner as the driver sees it: all ranks at once, every call with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rollout_server.push import Superseded
from trainer.batch import MiniBatch, Sample, pack_for_ranks
from trainer.collect import Logprobs
from trainer.config import RunSettings
from trainer.stats import StepStats, merge
from wire.errors import ConfigError, ServiceError
from wire.generation import PolicyVersion
from wire.membership import Member, TransferReport
from wire.waits import waiting

TRANSFER_MARGIN_S = 20.0  # a rank keeps a transfer's deadline itself; this is for its host
CLOSE_TIMEOUT_S = 10.0
STEPS, SCORES, LOADS, SAVES, EXPORTS = "steps", "scores", "loads weights", "saves", "exports"
ACCUMULATES = "accumulates"
FORMS_GROUP, SENDS = "forms the transfer group", "sends weights"
LEARNER = "learner"  # all ranks, as a peer
REASONS = {  # of waiting for a rank, by the call
    "pick_port": "picks a port",
    "setup": "loads the policy",
    "step": STEPS,
    "accumulate": ACCUMULATES,
    "reference": SCORES,
    "open_transfer": FORMS_GROUP,
    "send_weights": SENDS,
    "save": SAVES,
    "load": LOADS,
    "export": EXPORTS,
    "export_adapter": EXPORTS,
}


class Learner:
    """The learner ranks, driven together.

    Args:
        actors: a handle for each rank, in rank order; their methods are those of `LearnerRank`.
        settings: the run's.
    """

    def __init__(self, actors: Sequence[Any], settings: RunSettings) -> None:
        self._actors, self._settings = list(actors), settings
        # One call at a time over all ranks: every pass is a collective, so all must run them in one order.
        self._lock = asyncio.Lock()
        # Weights that are being sent must not change meanwhile. Taken before the other lock.
        self._transfer_lock = asyncio.Lock()
        self._sends_beside = False
        self._base = PolicyVersion(0, 0)
        self._waiting: list[tuple[Sequence[Sample], asyncio.Future[list[Logprobs]]]] = []
        self._scorer: asyncio.Task[None] | None = None
        self.num_steps = 0  # taken since the start of this process, failed ones included

    @property
    def num_ranks(self) -> int:
        """Learner ranks."""
        return len(self._actors)

    @property
    def version(self) -> PolicyVersion:
        """What the ranks hold, or are making."""
        return PolicyVersion(self._base.lineage, self._base.step + self.num_steps)

    def begin_at(self, version: PolicyVersion) -> None:
        """Name what the ranks hold before their first step."""
        self._base = version

    async def setup(self, host: str) -> dict[str, Any]:
        """Load the policy on every rank; returns rank 0's facts about it."""
        port = await self._wait([self._actors[0].pick_port.remote()], "pick_port")
        async with self._lock:
            facts: dict[str, Any] = (await self._on_all("setup", *[(host, port[0])] * self.num_ranks))[0]
        self._sends_beside = bool(facts.get("sends_beside"))
        return facts

    async def reference(self, samples: Sequence[Sample]) -> list[Logprobs]:
        """Own and reference log-probs of each sample. Groups that wait together are scored together."""
        future: asyncio.Future[list[Logprobs]] = asyncio.get_running_loop().create_future()
        self._waiting.append((samples, future))
        if self._scorer is None or self._scorer.done():
            self._scorer = asyncio.create_task(self._score_waiting())
        with waiting(LEARNER, SCORES):
            return await future

    async def _score_waiting(self) -> None:
        while self._waiting:
            async with self._lock:
                taken = self._take_waiting()
                try:
                    results = await self._reference_pass([sample for samples, _ in taken for sample in samples])
                except asyncio.CancelledError:
                    for _, future in [*taken, *self._waiting]:
                        future.cancel()
                    raise
                except Exception as error:  # noqa: BLE001 - handed on to the groups of this pass
                    for _, future in taken:
                        if not future.done():
                            future.set_exception(error)
                    continue  # those still waiting must get an answer too, or the run would wait for them for ever
            start = 0
            for samples, future in taken:
                if not future.done():
                    future.set_result(results[start : start + len(samples)])
                start += len(samples)

    def _take_waiting(self) -> list[tuple[Sequence[Sample], asyncio.Future[list[Logprobs]]]]:
        """Whole groups, up to local_rollout_forward_batch_size completions a rank (one group at the least).

        Which groups wait together depends on time, and what is packed beside a sample can move the last bits of its
        log-probs: a deterministic run scores each group alone.
        """
        room = self._settings.local_rollout_forward_batch_size * self.num_ranks
        taken = [self._waiting.pop(0)]
        size = len(taken[0][0])
        while not self._settings.deterministic and self._waiting and size + len(self._waiting[0][0]) <= room:
            taken.append(self._waiting.pop(0))
            size += len(taken[-1][0])
        return taken

    async def _reference_pass(self, samples: Sequence[Sample]) -> list[Logprobs]:
        shares = pack_for_ranks(samples, self.num_ranks, self._settings.microbatch_tokens)
        replies = await self._on_all("reference", *[(micro_batches,) for micro_batches in shares])
        by_sample: dict[int, Logprobs] = {}  # by identity: two completions can be equal
        for micro_batches, reply in zip(shares, replies, strict=True):
            for micro_batch, rows in zip(micro_batches, reply, strict=True):
                by_sample.update((id(sample), row) for sample, row in zip(micro_batch, rows, strict=True))
        return [by_sample[id(sample)] for sample in samples]

    async def accumulate(self, batch: Sequence[MiniBatch]) -> None:
        """A part of the next step's gradient; `batch[rank]` is a rank's share. The weights stay as they are."""
        async with self._lock:
            await self._on_all("accumulate", *[(share,) for share in batch])

    async def step(self, batch: Sequence[Sequence[MiniBatch]]) -> StepStats:
        """One step of the loop; `batch[rank]` is a rank's share. Waits for a transfer that is under way."""
        async with self._transfer_lock, self._lock:
            self.num_steps += 1
            return merge(await self._on_all("step", *[(list(share),) for share in batch]))

    async def open_transfer(self, members: Sequence[Member], timeout_s: float) -> TransferReport:
        """Form the transfer group with the members; the report says how it went at each."""
        async with self._transfer_lock:
            return await self._transfer("open_transfer", (list(members), timeout_s), timeout_s)

    async def send_weights(self, version: PolicyVersion, push_id: str, timeout_s: float) -> TransferReport:
        """Send the weights, which are `version`, to the group; the report says how it went at each member.

        Raises:
            Superseded: the ranks hold another version by now.
        """
        async with self._transfer_lock:
            if version != self.version:
                raise Superseded(f"version {version.label}: the learner holds {self.version.label}")
            return await self._transfer("send_weights", (version, push_id, timeout_s), timeout_s)

    async def _transfer(self, method: str, arguments: tuple[Any, ...], timeout_s: float) -> TransferReport:
        """On rank 0 alone, beside its other work, where it holds all weights; else on all ranks, for they gather."""
        if self._sends_beside:
            call = getattr(self._actors[0], f"{method}_beside").remote(*arguments)
            return (await self._wait([call], method, timeout_s + TRANSFER_MARGIN_S))[0]  # type: ignore[no-any-return]  # the actor's answer
        async with self._lock:
            calls = [getattr(actor, method).remote(*arguments) for actor in self._actors]
            return (await self._wait(calls, method, timeout_s + TRANSFER_MARGIN_S))[0]  # type: ignore[no-any-return]  # as above

    async def save(self, folder: str) -> None:
        """Write all ranks' parts of a checkpoint."""
        async with self._lock:
            await self._on_all("save", *[(folder,)] * self.num_ranks)

    async def load(self, folder: str) -> None:
        """Restore all ranks from a checkpoint."""
        async with self._transfer_lock, self._lock:
            await self._on_all("load", *[(folder,)] * self.num_ranks)

    async def export(self, folder: str) -> None:
        """Write the policy in Hugging Face format."""
        async with self._lock:
            await self._on_all("export", *[(folder,)] * self.num_ranks)

    async def export_adapter(self, folder: str) -> None:
        """Write the adapters in PEFT's format."""
        async with self._lock:
            await self._on_all("export_adapter", *[(folder,)] * self.num_ranks)

    async def close(self) -> None:
        """Leave every group; errors are of no interest any more."""
        if self._scorer is not None:
            self._scorer.cancel()
        calls = [actor.close.remote() for actor in self._actors]
        await asyncio.wait([asyncio.ensure_future(_as_coroutine(call)) for call in calls], timeout=CLOSE_TIMEOUT_S)

    async def _on_all(self, method: str, *arguments: tuple[Any, ...]) -> list[Any]:
        calls = [getattr(actor, method).remote(*args) for actor, args in zip(self._actors, arguments, strict=True)]
        return await self._wait(calls, method)

    async def _wait(self, calls: Sequence[Any], method: str, timeout_s: float | None = None) -> list[Any]:
        """All replies; the first rank that fails fails the call, for the others may wait for it in a collective."""
        reason = REASONS.get(method, method)
        tasks = {
            asyncio.ensure_future(_watched(call, f"learner {rank}", reason)): rank for rank, call in enumerate(calls)
        }
        timeout_s = timeout_s or self._settings.learner_timeout_s
        try:
            with waiting(LEARNER, reason):
                done, pending = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        finally:  # also where we are cancelled: the rank works on, and nobody waits for it any more
            for task in tasks:
                task.cancel()
        for task in done:
            error = task.exception()
            if error is not None:
                cause = getattr(error, "cause", None)
                if isinstance(cause, ConfigError):
                    raise ConfigError(f"learner rank {tasks[task]}: {cause}") from error
                raise ServiceError(f"learner rank {tasks[task]}: {method}: {_cause(error)}") from error
        if pending:
            late = ", ".join(str(tasks[task]) for task in pending)
            raise ServiceError(f"learner rank {late} did not finish {method} within {timeout_s:.0f} s")
        return [task.result() for task in tasks]


async def _watched(reference: Any, peer: str, reason: str) -> Any:
    with waiting(peer, reason, who=LEARNER):
        return await reference


async def _as_coroutine(reference: Any) -> Any:
    return await reference


def _cause(error: BaseException) -> str:
    """The last line that says something; Ray wraps the rank's own error in its traceback."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"
