"""What a ledger holds when a run begins: where the run goes on, and what of earlier lives it may use."""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from trainer.config import RunSettings
from trainer.ledger_writer import connect
from trainer.lineage import Fork, Lineage
from wire.errors import ConfigError
from wire.generation import Completion, PolicyVersion, VersionSpan
from wire.judgement import Verdict

LEDGER_FILE = "ledger.sqlite"
TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS lineages (lineage INTEGER PRIMARY KEY, parent INTEGER, step INTEGER);
CREATE TABLE IF NOT EXISTS lives (lineage INTEGER, step INTEGER, settings TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS steps (
    lineage INTEGER, step INTEGER, stats TEXT NOT NULL, PRIMARY KEY (lineage, step));
CREATE TABLE IF NOT EXISTS trained (
    lineage INTEGER, step INTEGER, place INTEGER, occurrence INTEGER NOT NULL, numbers TEXT NOT NULL,
    PRIMARY KEY (lineage, step, place));
CREATE TABLE IF NOT EXISTS dropped (
    lineage INTEGER, step INTEGER, occurrence INTEGER, reason TEXT NOT NULL,
    PRIMARY KEY (lineage, step, occurrence));
CREATE TABLE IF NOT EXISTS completions (
    occurrence INTEGER, place INTEGER, token_ids BLOB NOT NULL, logprobs BLOB NOT NULL, finished INTEGER NOT NULL,
    versions TEXT NOT NULL, replica TEXT NOT NULL, PRIMARY KEY (occurrence, place));
CREATE TABLE IF NOT EXISTS verdicts (
    occurrence INTEGER, seed INTEGER, vote INTEGER, verdict TEXT NOT NULL, PRIMARY KEY (occurrence, seed, vote));
"""
# What completions and verdicts depend on, beside the weights: with other values they are another run's.
WRITTEN_UNDER = (
    "model_name_or_path", "model_revision", "temperature", "response_length", "enable_thinking", "dataset_name",
    "dataset_config", "dataset_split", "dataset_language", "max_prompt_length", "seed", "rloo_k",
)  # fmt: skip
JUDGED_UNDER = (
    *WRITTEN_UNDER, "judge_model_name_or_path", "judge_dialect", "judge_principle", "judge_max_tokens",
    "judge_max_model_len", "judge_retries", "judge_temperature",
)  # fmt: skip
# The facts that name the first place of the stream whose completions, or verdicts, no prune and no change took away.
KEPT_FROM = {table: f"{table}_from" for table in ("completions", "verdicts")}
KEEP_FROM = """
INSERT INTO facts VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET value = max(CAST(value AS INTEGER), CAST(excluded.value AS INTEGER))
"""
Made = tuple[str, list[tuple[Any, ...]]]  # a step's numbers, and (place, occurrence, numbers) of its groups


class Restored(Protocol):
    """A checkpoint's position; `trainer.checkpoint.DriverState` is the real one."""

    @property
    def lineage(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def next_prompt(self) -> int: ...
    @property
    def deterministic(self) -> bool: ...


@dataclass
class Remembered:
    """What the ledger holds of one group."""

    completions: dict[int, Completion] = field(default_factory=dict)
    verdicts: dict[tuple[int, int], Verdict] = field(default_factory=dict)


@dataclass(frozen=True)
class Past:
    """What earlier lives of a run left.

    The run goes on from `version`, whose `lineage` says whose completions may be used. `remembered` is what is there of
    each group, by the prompt's occurrence; `made` the steps beyond `version` that are to be repeated, by number;
    `digest` that of the step of `version`, empty where none is known.
    """

    version: PolicyVersion
    lineage: Lineage
    remembered: dict[int, Remembered] = field(default_factory=dict)
    made: dict[int, Made] = field(default_factory=dict)
    digest: str = ""


def read_past(path: Path, settings: RunSettings, restored: Restored | None, say: Callable[[str], None]) -> Past:
    """The past in the ledger at `path`, which is made where it is not there; the life that begins is written down.

    Args:
        path: the file.
        settings: the run's.
        restored: the checkpoint's position; None where the run begins with the untrained policy.
        say: told what cannot be used again.

    Raises:
        ConfigError: the file is no ledger.
    """
    try:
        with closing(connect(path)) as database:
            database.executescript(TABLES)
            version = _begin(database, restored, deterministic=settings.deterministic)
            _forget_another_run(database, settings, say)
            lineage = Lineage(version.lineage, _forks(database))
            remembered = _remembered(database, restored.next_prompt if restored else 0)
            made = _made_after(database, version)
            digest = _digest_of(database, lineage, version.step)
            _note_life(database, version, settings)
    except sqlite3.Error as error:
        raise ConfigError(f"{path} is no ledger of this program ({error}); move it away") from error
    return Past(version, lineage, remembered, made, digest)


def completion_of(row: Sequence[Any]) -> Completion:
    """The completion in a row of the table `completions`."""
    _, place, token_ids, logprobs, finished, versions, replica = row
    spans = msgspec.json.decode(versions, type=tuple[VersionSpan, ...])
    return Completion(place, array("i", token_ids), array("d", logprobs), bool(finished), spans, replica)


def _begin(database: sqlite3.Connection, restored: Restored | None, *, deterministic: bool) -> PolicyVersion:
    """The version to go on from, written down."""
    start = PolicyVersion(restored.lineage, restored.step) if restored else PolicyVersion(0, 0)
    known = {row[0] for row in database.execute("SELECT lineage FROM lineages")}
    if start.lineage not in known:
        # Its own ledger is gone, or it never had one: nothing is known of the weights that its life made later.
        is_new = restored is None
        database.execute("INSERT INTO lineages VALUES (?, NULL, NULL)", (start.lineage,))
        known.add(start.lineage)
    else:
        query = "SELECT 1 FROM steps WHERE lineage = ? AND step > ?"
        is_new = database.execute(query, (start.lineage, start.step)).fetchone() is None
    repeats = deterministic and (restored is None or restored.deterministic)
    if is_new or repeats:
        return start
    lineage = max(known) + 1
    database.execute("INSERT INTO lineages VALUES (?, ?, ?)", (lineage, start.lineage, start.step))
    return PolicyVersion(lineage, start.step)


def _forget_another_run(database: sqlite3.Connection, settings: RunSettings, say: Callable[[str], None]) -> None:
    """What was written or judged under other settings is of no use."""
    for table, names in (("completions", WRITTEN_UNDER), ("verdicts", JUDGED_UNDER)):
        now = {name: getattr(settings, name) for name in names}
        row = database.execute("SELECT value FROM facts WHERE name = ?", (table,)).fetchone()
        before = now if row is None else json.loads(row[0])
        changed = [name for name in names if before.get(name) != now[name]]
        if changed:
            database.execute(f"DELETE FROM {table}")
            kept_from = database.execute("SELECT max(occurrence) + 1 FROM trained").fetchone()[0] or 0
            database.execute(KEEP_FROM, (KEPT_FROM[table], str(kept_from)))
            say(f"ledger: earlier {table} are not used, for other than then is {', '.join(changed)}")
        database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (table, json.dumps(now)))


def _forks(database: sqlite3.Connection) -> dict[int, Fork]:
    rows = database.execute("SELECT lineage, parent, step FROM lineages WHERE parent IS NOT NULL")
    return {lineage: Fork(parent, step) for lineage, parent, step in rows}


def _remembered(database: sqlite3.Connection, next_prompt: int) -> dict[int, Remembered]:
    found: dict[int, Remembered] = {}
    for row in database.execute("SELECT * FROM completions WHERE occurrence >= ?", (next_prompt,)):
        found.setdefault(row[0], Remembered()).completions[row[1]] = completion_of(row)
    for occurrence, seed, vote, text in database.execute(
        "SELECT * FROM verdicts WHERE occurrence >= ?", (next_prompt,)
    ):
        verdict = Verdict.model_validate_json(text)
        found.setdefault(occurrence, Remembered()).verdicts[seed, vote] = verdict
    return found


def _made_after(database: sqlite3.Connection, version: PolicyVersion) -> dict[int, Made]:
    """The steps that an earlier life of the lineage made beyond this one; they are repeated."""
    made: dict[int, Made] = {}
    query = "SELECT step, stats FROM steps WHERE lineage = ? AND step > ?"
    for step, stats in database.execute(query, (version.lineage, version.step)).fetchall():
        rows = "SELECT place, occurrence, numbers FROM trained WHERE lineage = ? AND step = ? ORDER BY place"
        made[step] = (stats, database.execute(rows, (version.lineage, step)).fetchall())
    return made


def _digest_of(database: sqlite3.Connection, lineage: Lineage, step: int) -> str:
    """The digest of the step that the lineage goes on from; empty where none is known."""
    for number, stats in database.execute("SELECT lineage, stats FROM steps WHERE step = ?", (step,)).fetchall():
        if lineage.holds(PolicyVersion(number, step)):
            return str(json.loads(stats).get("digest", ""))
    return ""


def _note_life(database: sqlite3.Connection, version: PolicyVersion, settings: RunSettings) -> None:
    values = (version.lineage, version.step, json.dumps(asdict(settings)))
    database.execute("INSERT INTO lives VALUES (?, ?, ?)", values)
