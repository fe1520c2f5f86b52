"""Checkpoints: whole or absent.

    <output_dir>/checkpoint-120/
        learner/      weights, optimizer, schedule (DeepSpeed) and random states of every rank
        state.json    version, next prompt: where the driver goes on

A checkpoint is written aside, synced and renamed; older ones go afterwards.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from trainer.config import RunSettings
from trainer.folders import aside_of, in_thread, remove_folder, replace_folder
from trainer.ledger_past import LEDGER_FILE
from wire.errors import ConfigError, ServiceError
from wire.generation import PolicyVersion
from wire.waits import waiting

NAME = re.compile(r"checkpoint-\d+")
MB = 10**6
DISK, SYNCS = "disk", "syncs a checkpoint"


class Saver(Protocol):
    """What can write and read the learner's part."""

    async def save(self, folder: str) -> None: ...

    async def load(self, folder: str) -> None: ...


@dataclass(frozen=True)
class DriverState:
    """`next_prompt` is the place in the prompt stream, `taken_ahead` are places beyond it that are used. The size of a
    step, the ranks, the seed and the adapters must be the same on resume. `deterministic`: of the run that wrote it."""

    lineage: int
    step: int
    next_prompt: int
    completions_per_step: int
    num_learner_ranks: int
    seed: int
    deterministic: bool = False
    adapters: str = "none"
    taken_ahead: list[int] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        settings: output_dir, save_steps, save_total_limit, resume_from_checkpoint.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._settings, self._folder = settings, Path(settings.output_dir)

    def existing(self) -> list[Path]:
        """Whole checkpoints in the order they were written.

        Not in the order of their steps: a run that went back to an earlier checkpoint writes lower ones than lie there
        from its former life, and these are the newest all the same.
        """
        states = [path / "state.json" for path in self._folder.glob("checkpoint-*") if NAME.fullmatch(path.name)]
        whole = [(state.stat().st_mtime_ns, state.parent) for state in states if state.is_file()]
        return [path for _, path in sorted(whole)]

    def to_resume(self) -> tuple[Path, DriverState] | None:
        """The checkpoint that `resume_from_checkpoint` names, read; None for a fresh start.

        `latest` is a fresh start, too, where the run died before its first checkpoint: its ledger is there.

        Raises:
            ConfigError: there is none, or its step has another size than this run's.
        """
        wanted = self._settings.resume_from_checkpoint
        if not wanted:
            return None
        paths: Sequence[Path] = self.existing() if wanted == "latest" else [Path(wanted)]
        if not paths and (self._folder / LEDGER_FILE).is_file():
            return None
        if not paths:
            raise ConfigError(f"resume_from_checkpoint latest: {self._folder} holds no checkpoint")
        try:
            state = DriverState(**json.loads((paths[-1] / "state.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{paths[-1]} is no checkpoint of this program: {error}") from error
        for name in ("completions_per_step", "num_learner_ranks", "seed", "adapters"):
            before, now = getattr(state, name), getattr(self._settings, name)
            if before != now:
                raise ConfigError(f"{paths[-1]} was made with {name} {before}, this run has {now}; keep it the same")
        return paths[-1], state

    def has(self, step: int) -> bool:
        """Whether the checkpoint of this step exists."""
        return (self._folder / f"checkpoint-{step}").is_dir()

    def is_due(self, step: int) -> bool:
        """Whether this step is one of every `save_steps`, or the last."""
        every = self._settings.save_steps
        return step == self._settings.num_steps or bool(every and step % every == 0)

    def clear_leftovers(self) -> None:
        """Remove what killed lives left: checkpoints half written or half removed."""
        for path in self._folder.glob(".checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)

    def first_needed(self) -> int:
        """The earliest place of the prompt stream that a checkpoint that is there goes on from; 0 where none is."""
        states = [json.loads((path / "state.json").read_text()) for path in self.existing()]
        return min((int(state["next_prompt"]) for state in states), default=0)

    async def save(
        self, saver: Saver, version: PolicyVersion, next_prompt: int, taken_ahead: Sequence[int] = ()
    ) -> Path:
        """Write a checkpoint, then drop the oldest beyond save_total_limit; returns its path.

        The event loop stays free meanwhile: replicas and judge go on working.

        Raises:
            ServiceError: it could not be written. What was written of it is removed; earlier checkpoints are as before.
        """
        final = self._folder / f"checkpoint-{version.step}"
        self.clear_leftovers()
        aside = aside_of(final)
        try:
            aside.mkdir(parents=True)
            await saver.save(str(aside))
            (aside / "state.json").write_text(
                json.dumps(asdict(self._state(version, next_prompt, taken_ahead)), indent=2)
            )
            with waiting(DISK, SYNCS):
                await in_thread(self._make_final, aside, final)
        except (ServiceError, OSError) as error:
            raise self._failure(final, aside, error) from error
        return final

    def _state(self, version: PolicyVersion, next_prompt: int, taken_ahead: Sequence[int]) -> DriverState:
        settings = self._settings
        return DriverState(
            lineage=version.lineage,
            step=version.step,
            next_prompt=next_prompt,
            completions_per_step=settings.completions_per_step,
            num_learner_ranks=settings.num_learner_ranks,
            seed=settings.seed,
            deterministic=settings.deterministic,
            adapters=settings.adapters,
            taken_ahead=sorted(taken_ahead),
        )

    def _make_final(self, aside: Path, final: Path) -> None:
        replace_folder(aside, final)
        for path in self.existing()[: -self._settings.save_total_limit]:
            remove_folder(path)

    def _failure(self, final: Path, aside: Path, error: Exception) -> ServiceError:
        """The error to raise, with the partial folder gone. Room is measured before that, while it is still taken."""
        message = f"{final} could not be written: {error}"
        with suppress(OSError):  # the cause is what must be told
            written, free = _size_of(aside), shutil.disk_usage(self._folder).free
            shutil.rmtree(aside, ignore_errors=True)
            whole = self.existing()
            before = f"; {whole[-1]} is intact, of {_size_of(whole[-1]) / MB:.1f} MB" if whole else ""
            message += f" ({written / MB:.1f} MB were written, and {free / MB:.1f} MB free after that{before})"
        return ServiceError(message)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
