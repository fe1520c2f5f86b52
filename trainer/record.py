"""What an audit reads of a run's ledger: the surviving lineage, the settings of its lives, what is kept of groups."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from trainer.config import RunSettings
from trainer.ledger_check import History, Surviving, TrainedGroup, history_in, reading
from trainer.ledger_past import KEPT_FROM, LEDGER_FILE, completion_of
from trainer.provenance import COMPLETION_FIELDS, PER_COMPLETION, PER_GROUP, short_digest
from wire.errors import ConfigError
from wire.generation import Completion, PolicyVersion
from wire.judgement import Verdict

MARKS = {"fields", "rows", "verdict_keys", "verdict_texts", *COMPLETION_FIELDS}


@dataclass(frozen=True)
class Life:
    """The run went on from `version` with `settings`."""

    version: PolicyVersion
    settings: RunSettings


@dataclass(frozen=True)
class RecordedGroup:
    """A group as the ledger has it; `numbers` is None where they cannot be read. K: its completions."""

    trained: TrainedGroup
    numbers: dict[str, Any] | None

    @property
    def occurrence(self) -> int:
        """Its place in the prompt stream."""
        return self.trained.occurrence

    @property
    def name(self) -> str:
        """For a person."""
        return f"prompt {self.occurrence} (step {self.trained.version.label})"

    @property
    def known(self) -> dict[str, Any]:
        """The numbers, where they can be read."""
        assert self.numbers is not None
        return self.numbers

    @property
    def num_completions(self) -> int:
        """K."""
        return len(self.known["verdict_scores"])

    @classmethod
    def of(cls, trained: TrainedGroup) -> RecordedGroup:
        """With its numbers parsed."""
        try:
            numbers = json.loads(trained.numbers)
            lists = [numbers[name] for name in (*PER_COMPLETION, "pairs", "judged", "unjudged", "same_as")]
            is_whole = set(PER_GROUP) <= set(numbers) and set(numbers["marks"]) == MARKS
            is_whole = is_whole and all(isinstance(value, list) for value in lists)
        except (ValueError, KeyError, TypeError):
            is_whole = False
        return cls(trained, numbers if is_whole else None)


@dataclass(frozen=True)
class KeptCompletion:
    """A row of the table `completions`: the digests of what it holds now, in the order of `COMPLETION_FIELDS`."""

    row: Sequence[Any]

    @property
    def marks(self) -> list[str]:
        """Of tokens, log-probs and versions."""
        _, _, token_ids, logprobs, _, versions, _ = self.row
        parts = [part.encode() if isinstance(part, str) else bytes(part) for part in (token_ids, logprobs, versions)]
        return [short_digest(part) for part in parts]

    @property
    def finished(self) -> bool:
        """Whether it ended by itself."""
        return bool(self.row[4])

    @property
    def completion(self) -> Completion:
        """Itself."""
        return completion_of(self.row)


class Record:
    """A ledger that is open to be read; see `recorded`."""

    def __init__(self, database: sqlite3.Connection, history: History, lives: Sequence[Life]) -> None:
        self._database, self.history, self.lives = database, history, lives
        self.surviving = Surviving.of(history)

    @cached_property
    def groups(self) -> list[RecordedGroup]:
        """What the surviving lineage was trained on, in the order of training."""
        return [RecordedGroup.of(trained) for trained in self.surviving.trained]

    @cached_property
    def _by_version(self) -> dict[PolicyVersion, list[RecordedGroup]]:
        found: dict[PolicyVersion, list[RecordedGroup]] = {}
        for group in self.groups:
            found.setdefault(group.trained.version, []).append(group)
        return found

    def groups_of(self, version: PolicyVersion) -> list[RecordedGroup]:
        """Those of one step."""
        return self._by_version.get(version, [])

    def settings_of(self, version: PolicyVersion) -> RunSettings | None:
        """The settings of the life that made the version; None where it is not there."""
        lives = [x for x in self.lives if x.version.lineage == version.lineage and x.version.step < version.step]
        return lives[-1].settings if lives else None

    def step_numbers(self) -> Mapping[PolicyVersion, dict[str, Any] | None]:
        """What the ledger says of each step of the surviving lineage; None where it cannot be read."""
        rows = self._database.execute("SELECT lineage, step, stats FROM steps").fetchall()
        texts = {PolicyVersion(lineage, step): stats for lineage, step, stats in rows}
        return {version: _as_object(texts[version]) for version in self.surviving.steps}

    def kept_from(self, table: str) -> int:
        """The first place of the stream whose `completions`, or `verdicts`, must still be there."""
        query = "SELECT value FROM facts WHERE name = ?"
        row = self._database.execute(query, (KEPT_FROM[table],)).fetchone()
        return int(row[0]) if row else 0

    def completions(self, occurrence: int) -> dict[int, KeptCompletion]:
        """What is kept of a group's completions, by index."""
        rows = self._database.execute("SELECT * FROM completions WHERE occurrence = ?", (occurrence,))
        return {row[1]: KeptCompletion(row) for row in rows}

    def verdicts(self, occurrence: int) -> dict[str, Verdict]:
        """What is kept of a group's verdicts, by the judgement's name; those that cannot be read are left out."""
        rows = self._database.execute("SELECT verdict FROM verdicts WHERE occurrence = ?", (occurrence,))
        verdicts = []
        for (text,) in rows:
            try:
                verdicts.append(Verdict.model_validate_json(text))
            except ValueError:
                continue
        return {verdict.key: verdict for verdict in verdicts}

    def dropped(self, occurrence: int) -> list[tuple[PolicyVersion, str]]:
        """Why a group was passed over, and for which step."""
        rows = self._database.execute("SELECT lineage, step, reason FROM dropped WHERE occurrence = ?", (occurrence,))
        found = [(PolicyVersion(lineage, step), reason) for lineage, step, reason in rows]
        return [(version, reason) for version, reason in found if self.surviving.lineage.holds(version)]


@contextmanager
def recorded(output_dir: Path) -> Iterator[Record]:
    """The ledger of the run in `output_dir`, all of one moment, also while the run writes it.

    Raises:
        ConfigError: there is none, or one without the settings of its lives.
    """
    path = output_dir / LEDGER_FILE
    try:
        with reading(path) as database:
            history, lives = history_in(database), _lives(database)
            if not lives:
                raise ConfigError(f"{path} does not say with which settings its run was made: it cannot be audited")
            if not history.lineages:
                raise ConfigError(f"{path}: no lineage was ever begun; name the output_dir of a run")
            yield Record(database, history, lives)
    except sqlite3.Error as error:
        raise ConfigError(f"{path} cannot be read ({error}); name the output_dir of a run") from error


def _lives(database: sqlite3.Connection) -> list[Life]:
    names = {field.name for field in fields(RunSettings)}
    lives = []
    for lineage, step, text in database.execute("SELECT lineage, step, settings FROM lives ORDER BY rowid"):
        values = {name: value for name, value in json.loads(text).items() if name in names}
        lives.append(Life(PolicyVersion(lineage, step), RunSettings(**values)))
    return lives


def _as_object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
