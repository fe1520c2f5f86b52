"""HelpSteer3-shaped conversations: found, checked and filtered before anything else starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config import RunSettings
from wire.errors import ConfigError
from wire.models import is_hub_id

COLUMNS = ("context", "language")
SUFFIXES = (".jsonl.gz", ".jsonl", ".json.gz", ".json", ".parquet")

Conversation = list[dict[str, str]]


def load_conversations(settings: RunSettings, split: str) -> list[Conversation]:
    """The `context` column of one split, filtered by language: conversations that end in a user turn.

    Raises:
        ConfigError: no such data set or split, columns missing, or nothing left after the filter.
    """
    rows = _load(settings, split)
    missing = [column for column in COLUMNS if column not in rows.column_names]
    if missing:
        raise ConfigError(
            f"dataset_name {settings.dataset_name!r} has no column {', '.join(missing)} (it has "
            f"{', '.join(rows.column_names)}); HelpSteer3's preference columns are needed"
        )
    languages = rows["language"]
    keep = [i for i, name in enumerate(languages) if settings.dataset_language in (None, name)]
    if not keep:
        found = ", ".join(sorted({str(name) for name in languages})) or "no rows"
        raise ConfigError(
            f"dataset_language {settings.dataset_language!r} leaves no row of {settings.dataset_name} ({split}); "
            f"the split has {found}"
        )
    return _conversations(rows.select(keep)["context"], settings.dataset_name, split)


def _conversations(contexts: Any, name: str, split: str) -> list[Conversation]:
    conversations = []
    for context in contexts:
        try:
            turns = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in context]
        except (TypeError, KeyError):
            raise ConfigError(f"{name} ({split}): `context` must be a list of role/content turns") from None
        if turns and turns[-1]["role"] == "user":
            conversations.append(turns)
    if not conversations:
        raise ConfigError(f"{name} ({split}) holds no conversation that ends in a user turn")
    return conversations


def _load(settings: RunSettings, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    name = settings.dataset_name
    if not is_hub_id(name):
        return _load_folder(Path(name), settings.dataset_config, split)
    try:
        return datasets.load_dataset(name, settings.dataset_config, split=split, revision=settings.dataset_revision)
    except (OSError, ValueError, RuntimeError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"dataset_name {name!r} ({settings.dataset_config}, {split}) is no folder here and cannot be had from the "
            f"Hub: {first_line}"
        ) from error


def _load_folder(folder: Path, config: str, split: str) -> Any:
    import datasets

    if not folder.is_dir():
        raise ConfigError(f"dataset_name {str(folder)!r} is neither a folder nor a Hub id (owner/name); check the path")
    for parent in (folder / config, folder):
        for suffix in SUFFIXES:
            path = parent / f"{split}{suffix}"
            if path.is_file():
                kind = "parquet" if suffix == ".parquet" else "json"
                try:
                    return datasets.load_dataset(kind, data_files=str(path), split="train")
                except (datasets.exceptions.DatasetGenerationError, ValueError, OSError, StopIteration) as error:
                    reason = str(error) or "it holds no rows"  # an empty file raises StopIteration
                    raise ConfigError(f"{path} cannot be read as {kind}: {reason}") from error
    raise ConfigError(
        f"{folder} has no {config}/{split}.jsonl[.gz] (or .json, .parquet); check dataset_config and split"
    )
