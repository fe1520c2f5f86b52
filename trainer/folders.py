"""Folders that are whole or absent, whatever dies meanwhile: written aside under a hidden name, synced and renamed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wire.errors import ConfigError

LOCK_FILE = ".lock"


@contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, is this process's while the context is open, or until the process ends.

    Raises:
        ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"output_dir {folder}: another run writes there; give this one a folder of its own, or end the other"
            ) from None
        yield
    finally:
        os.close(descriptor)


def aside_of(final: Path) -> Path:
    """Where a folder is written until it is whole: `.NAME.partial` beside its place."""
    return final.with_name(f".{final.name}.partial")


def replace_folder(aside: Path, final: Path) -> None:
    """Sync what was written aside and give it its name; a folder of that name goes first.

    Raises:
        OSError: the disk is full, or a path is not ours.
    """
    for path in sorted(aside.rglob("*")):
        _sync(path)
    remove_folder(final)
    aside.rename(final)
    _sync(final.parent)


def remove_folder(path: Path) -> None:
    """A removal that is cut short must not leave half a folder under a whole one's name."""
    if path.is_dir():
        shutil.rmtree(path.rename(path.with_name(f".{path.name}.removed")))


async def in_thread(work: Callable[..., None], *arguments: object) -> None:
    """Run it aside, and to its end even if we are cancelled: nobody else may write there meanwhile."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        await asyncio.shield(running)
    finally:
        await asyncio.wait([running])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
