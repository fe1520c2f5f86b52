"""Rows of `judge_file`: what a file asks to be judged, and what has been judged of it.

In, one JSON object a line, one of

    {"conversation": [turns], "responses": ["A", "B", "C"]}        `context` is the same as `conversation`
    {"context": [turns], "response1": "A", "response2": "B", "overall_preference": -2, "domain": "general"}

Out, one JSON object a line, in the order in which they were done:

    {"row": 7, "input": "<digest of row 7>", "judge": {"model": ..., "dialect": ..., ...}, "scores": [4.5, null, 2.0],
     "missing": ["timeout"], "verdicts": [{"first": 0, "second": 1, "vote": 0, "verdict": {...}}, ...], ...}

A row is told by its line number, its input by the digest of its content, so an output says itself what it belongs to.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from reward_server.preferences import PreferencePair, pair_in, turns_in
from reward_server.seeds import digest
from wire.errors import ConfigError
from wire.judgement import Message, PlacedVerdict

_VERDICTS = TypeAdapter(tuple[PlacedVerdict, ...])


@dataclass(frozen=True)
class Candidates:
    """K responses to one conversation, to be scored as a group."""

    conversation: tuple[Message, ...]
    responses: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A line of the input: its number from 1, the digest of its content, and what it asks."""

    number: int
    digest: str
    task: PreferencePair | Candidates


@dataclass
class Done:
    """The verdicts of each row that is done, without their texts, by the row's number; and who judged them."""

    verdicts: dict[int, tuple[PlacedVerdict, ...]] = field(default_factory=dict)
    judge: dict[str, Any] | None = None


def read_rows(path: Path) -> tuple[list[Row], int]:
    """The rows of a `.jsonl` or `.jsonl.gz` file, and the number of rows that hold no pair; see `preferences.pair_in`.

    Raises:
        ConfigError: the file cannot be read, a line is no row (the message gives its number), or nothing is left.
    """
    rows, num_skipped = [], 0
    for number, line in _lines(path):
        try:
            content = json.loads(line)
            text = json.dumps(content, sort_keys=True, ensure_ascii=False)
            text.encode()  # half a surrogate pair, which JSON can escape, is no text to send or to write
            task = _task(content)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
        if task is None:
            num_skipped += 1
        else:
            rows.append(Row(number, digest(text), task))
    if not rows:
        raise ConfigError(f"{path} holds nothing to judge; {num_skipped} rows without a pair were skipped")
    return rows, num_skipped


def read_done(path: Path, rows: Sequence[Row]) -> Done:
    """What an earlier start has written to `path`; nothing where there is no such file.

    A last line that was cut, as by a kill, is taken off the file; its row is judged again.

    Raises:
        ConfigError: the file is no output, one of another input, or one of two judges.
    """
    done = Done()
    if not path.exists():
        return done
    _cut_unfinished_line(path)
    inputs = {row.number: row.digest for row in rows}
    remedy = "name another output file, or delete this one"
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                place, wanted, judge = int(row["row"]), row["input"], dict(row["judge"])
                verdicts = _VERDICTS.validate_python(row["verdicts"])
            except (ValueError, TypeError, KeyError):  # pydantic's ValidationError is a ValueError
                raise ConfigError(f"{path}, line {number}, was not written by judge_file; {remedy}") from None
            if inputs.get(place) != wanted:
                raise ConfigError(
                    f"{path}, line {number}, belongs to another input, whose row {place} is not this one's; {remedy}"
                )
            if done.judge not in (None, judge):
                raise ConfigError(f"{path}, line {number}, was judged by {judge}, before it by {done.judge}; {remedy}")
            done.judge = judge
            done.verdicts[place] = without_text(verdicts)
    return done


def without_text(verdicts: Sequence[PlacedVerdict]) -> tuple[PlacedVerdict, ...]:
    """The verdicts without the judge's words, which may be long."""
    return tuple(one.model_copy(update={"verdict": one.verdict.model_copy(update={"text": ""})}) for one in verdicts)


def _task(row: Any) -> PreferencePair | Candidates | None:
    """Raises ValueError where the row is none."""
    if not isinstance(row, dict):
        raise ValueError(f"a row must be an object, not {type(row).__name__}")
    if "responses" not in row:
        if not {"context", "response1", "response2"} <= row.keys():
            raise ValueError("a row needs `conversation` and `responses`, or `context`, `response1` and `response2`")
        return pair_in(row)
    turns = turns_in(row["conversation"] if "conversation" in row else row.get("context"))
    if turns is None:
        raise ValueError("the conversation must end in a user turn, and every turn needs content")
    responses = row["responses"]
    if not isinstance(responses, list) or not responses or not all(isinstance(text, str) for text in responses):
        raise ValueError("`responses` must be a list of one text or more")
    return Candidates(tuple(turns), tuple(responses))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ConfigError(f"{path} must be a .jsonl or .jsonl.gz file")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _cut_unfinished_line(path: Path) -> None:
    with path.open("rb+") as file:
        end = file.seek(0, 2)
        while end:
            file.seek(end - 1)
            if file.read(1) == b"\n":
                break
            end -= 1
        file.truncate(end)
