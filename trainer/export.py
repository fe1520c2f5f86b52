"""The policy in Hugging Face format, every so many steps and at the end; each export is whole or absent.

    <output_dir>/export-200/        the policy after step 200, adapters merged
        adapter/                    with use_peft: the adapters alone, in PEFT's format
    <output_dir>/policy/            the same at the end of the run
    <output_dir>/adapter/

No export is removed: what is written every `export_steps` is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from trainer.config import RunSettings
from trainer.folders import aside_of, in_thread, replace_folder
from wire.errors import ServiceError


class Exporter(Protocol):
    """What can write the policy, and its adapters alone."""

    async def export(self, folder: str) -> None: ...

    async def export_adapter(self, folder: str) -> None: ...


class Exports:
    """The exports of one run.

    Args:
        settings: output_dir, export_steps, use_peft.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._settings, self._folder = settings, Path(settings.output_dir)

    def is_due(self, step: int) -> bool:
        """Whether this step is one of every `export_steps`."""
        every = self._settings.export_steps
        return bool(every and step % every == 0)

    async def save(self, exporter: Exporter, step: int) -> Path:
        """Write `export-STEP`; returns its path.

        Raises:
            ServiceError: it could not be written; nothing of it is left.
        """

        async def write(folder: Path) -> None:
            await exporter.export(str(folder))
            if self._settings.use_peft:
                await exporter.export_adapter(str(folder / "adapter"))

        return await self._whole(self._folder / f"export-{step}", write)

    async def save_final(self, exporter: Exporter) -> Path:
        """Write `policy`, and `adapter` beside it; returns the path of the former.

        Raises:
            ServiceError: as for `save`.
        """
        if self._settings.use_peft:
            await self._whole(self._folder / "adapter", lambda folder: exporter.export_adapter(str(folder)))
        return await self._whole(self._folder / "policy", lambda folder: exporter.export(str(folder)))

    async def _whole(self, final: Path, write: Callable[[Path], Awaitable[None]]) -> Path:
        for leftover in self._leftovers():
            shutil.rmtree(leftover, ignore_errors=True)
        aside = aside_of(final)
        try:
            aside.mkdir(parents=True)
            await write(aside)
            await in_thread(replace_folder, aside, final)
        except (ServiceError, OSError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise ServiceError(f"{final} could not be written: {error}") from error
        return final

    def _leftovers(self) -> list[Path]:
        """What killed lives left, half written or half removed."""
        return [path for name in ("export-", "policy.", "adapter.") for path in self._folder.glob(f".{name}*")]
