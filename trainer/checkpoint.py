"""Checkpoints: whole or absent.

    <output_dir>/checkpoint-120/
        learner/      weights, optimizer, schedule and random states of every rank (DeepSpeed)
        state.json    version, next prompt: where the driver goes on

A checkpoint is written aside, synced and renamed; older ones go afterwards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from trainer.config import RunSettings
from wire.errors import ConfigError
from wire.generation import PolicyVersion

NAME = re.compile(r"checkpoint-\d+")


class Saver(Protocol):
    """What can write and read the learner's part."""

    async def save(self, folder: str) -> None: ...

    async def load(self, folder: str) -> None: ...


@dataclass(frozen=True)
class DriverState:
    """`next_prompt` is the place in the prompt stream; the last three must be the same on resume."""

    lineage: int
    step: int
    next_prompt: int
    completions_per_step: int
    num_learner_ranks: int
    seed: int


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

        Raises:
            ConfigError: there is none, or its step has another size than this run's.
        """
        wanted = self._settings.resume_from_checkpoint
        if not wanted:
            return None
        paths: Sequence[Path] = self.existing() if wanted == "latest" else [Path(wanted)]
        if not paths:
            raise ConfigError(f"resume_from_checkpoint latest: {self._folder} holds no checkpoint")
        try:
            state = DriverState(**json.loads((paths[-1] / "state.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{paths[-1]} is no checkpoint of this program: {error}") from error
        for name in ("completions_per_step", "num_learner_ranks", "seed"):
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

    async def save(self, saver: Saver, version: PolicyVersion, next_prompt: int) -> Path:
        """Write a checkpoint, then drop the oldest beyond save_total_limit; returns its path."""
        final = self._folder / f"checkpoint-{version.step}"
        aside = self._folder / f".{final.name}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        await saver.save(str(aside))
        settings = self._settings
        state = DriverState(
            lineage=version.lineage,
            step=version.step,
            next_prompt=next_prompt,
            completions_per_step=settings.completions_per_step,
            num_learner_ranks=settings.num_learner_ranks,
            seed=settings.seed,
        )
        (aside / "state.json").write_text(json.dumps(asdict(state), indent=2))
        for path in sorted(aside.rglob("*")):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _sync(self._folder)
        for path in self.existing()[: -settings.save_total_limit]:
            shutil.rmtree(path)
        return final


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
