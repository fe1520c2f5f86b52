"""HelpSteer3-shaped rows: found, checked and filtered before anything else starts; and what people preferred in them.

    {"context": [turns, the last the user's], "response1": "...", "response2": "...", "language": "english",
     "domain": "general", "overall_preference": -2}

`overall_preference` is -3..3: below 0 response 1 is better, above 0 response 2, 0 about the same. Source: the card of
nvidia/HelpSteer3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wire.errors import ConfigError
from wire.judgement import Message
from wire.models import is_hub_id

COLUMNS = ("context", "language", "response1", "response2", "overall_preference")
SUFFIXES = (".jsonl.gz", ".jsonl", ".json.gz", ".json", ".parquet")
LARGEST_PREFERENCE = 3


@dataclass
class DataSettings:
    """Which conversations there are. `dataset_language` is None where all languages are kept."""

    dataset_name: str = field(
        default="nvidia/HelpSteer3", metadata={"help": "Hub id, or a folder with <config>/<split>.jsonl[.gz]."}
    )
    dataset_config: str = field(default="preference", metadata={"help": "The data set's configuration."})
    dataset_language: str | None = field(
        default="english", metadata={"help": "Keep rows of this language; an empty string keeps all."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set."})
    eval_split: str = field(
        default="validation", metadata={"help": "Split of the held-out prompts, and of the pairs that check the judge."}
    )

    def __post_init__(self) -> None:
        self.dataset_language = self.dataset_language or None


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one conversation and what people said of them: `preference` -3..3, below 0 for the first."""

    conversation: tuple[Message, ...]
    response1: str
    response2: str
    preference: int
    domain: str = ""


def load_rows(settings: DataSettings, split: str, columns: Sequence[str]) -> Any:
    """The rows of one split in the language that is kept, as a `datasets.Dataset` that has `columns`.

    Raises:
        ConfigError: no such data set or split, columns missing, or nothing left after the filter.
    """
    rows = _load(settings, split)
    missing = [column for column in columns if column not in rows.column_names]
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
    return rows.select(keep)


def load_pairs(settings: DataSettings, split: str) -> tuple[list[PreferencePair], int]:
    """The pairs of one split that people compared, and the number of rows that hold none; see `pair_in`.

    Raises:
        ConfigError: as `load_rows` does; or a row is malformed, or no row holds a pair.
    """
    rows = load_rows(settings, split, COLUMNS)
    where = f"{settings.dataset_name} ({split})"
    pairs = []
    for number, row in enumerate(rows, start=1):
        try:
            pair = pair_in(row)
        except ValueError as error:
            raise ConfigError(f"{where}: row {number} of those kept: {error}") from None
        if pair is not None:
            pairs.append(pair)
    if not pairs:
        raise ConfigError(f"{where} holds no two responses that people compared; {len(rows)} rows were skipped")
    return pairs, len(rows) - len(pairs)


def pair_in(row: Mapping[str, Any]) -> PreferencePair | None:
    """The pair that a row holds; None where a response or the preference is absent, or nobody waits for an answer.

    Raises:
        ValueError: the row has another shape; the message names the key.
    """
    turns = turns_in(row.get("context"))
    responses = [row.get("response1"), row.get("response2")]
    for place, response in enumerate(responses, start=1):
        if response is not None and not isinstance(response, str):
            raise ValueError(f"`response{place}` must be text, not {type(response).__name__}")
    preference = row.get("overall_preference")
    if turns is None or preference is None or not all(response and response.strip() for response in responses):
        return None
    if isinstance(preference, bool) or preference not in range(-LARGEST_PREFERENCE, LARGEST_PREFERENCE + 1):
        raise ValueError(f"`overall_preference` ({preference!r}) must be a whole number -3..3")
    first, second = (str(response) for response in responses)
    return PreferencePair(tuple(turns), first, second, int(preference), str(row.get("domain") or ""))


def turns_in(context: Any) -> list[Message] | None:
    """The turns of a conversation; None where it does not end in a user turn, or a turn has no content.

    Raises:
        ValueError: it is no list of turns.
    """
    try:
        turns = [(turn["role"], turn["content"]) for turn in context]
    except (TypeError, KeyError):
        raise ValueError("`context` must be a list of role/content turns") from None
    if not turns or turns[-1][0] != "user" or any(content is None for _, content in turns):
        return None
    return [Message(role=str(role), content=str(content)) for role, content in turns]


def _load(settings: DataSettings, split: str) -> Any:
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
