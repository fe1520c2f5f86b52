"""The memory of a run: `<output_dir>/ledger.sqlite`.

    completions   what replicas wrote: tokens, log-probs, version spans            until no checkpoint needs them
    verdicts      what the judge said of pairs                                     until no checkpoint needs them
    trained       which group was trained on in which step, and with what numbers  for ever
    dropped       which were passed over, and why                                  for ever
    steps         every version that was made, and the learner's numbers           for ever
    lineages      where each branched off                                          for ever
    lives         where each life of the run went on, and with which settings      for ever

Whatever died, what was paid for is there at the next start: completions of weights that are ancestors of those that are
trained now are used as long as the bound on lag allows, and verdicts whatever the weights, for a verdict is on texts.
Groups come in the order of the prompt stream, so a resumed run makes the same steps of the same prompts.

What was trained carries digests of all that it follows from (`trainer/provenance.py`), and `python -m trainer.audit`
holds the one against the other.

A version is written down before it is pushed. So at a resume it is known whether weights beyond the checkpoint may have
written something, and only then does the run begin a new lineage: see `Ledger.open`.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec

from trainer.config import RunSettings
from trainer.group import Group
from trainer.ledger_writer import LedgerWriter, Statement, connect
from trainer.lineage import Fork, Lineage
from trainer.provenance import (
    STEP_NUMBERS,
    completion_marks,
    number_marks,
    packed,
    said,
    step_digest,
    step_marks,
    verdict_marks,
)
from trainer.shaping import characters_of
from trainer.stats import StepStats
from wire.errors import ConfigError, ServiceError
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
_Made = tuple[str, list[tuple[Any, ...]]]  # a step's numbers, and (place, occurrence, numbers) of its groups
LASTING = frozenset({None, "unreadable", "too_long"})  # whether and why it is missing: no loss to time or to a server


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


class GroupMemory:
    """One group's share of the ledger, while it is in the making.

    `completions` are those that may be used, by index. The other methods are those of `reward_server.client`'s
    `VerdictMemory`.
    """

    def __init__(self, ledger: Ledger, occurrence: int, remembered: Remembered) -> None:
        self._ledger, self._occurrence, self._verdicts = ledger, occurrence, remembered.verdicts
        self.completions: Mapping[int, Completion] = remembered.completions

    def wrote(self, completion: Completion) -> None:
        """A replica wrote it."""
        self._ledger.note_completion(self._occurrence, completion)

    def recall(self, seed: int, vote: int) -> Verdict | None:
        """The verdict on the pair of this seed, if it was given before."""
        verdict = self._verdicts.get((seed, vote))
        self._ledger.counts["reused_verdicts"] += verdict is not None
        return verdict

    def note(self, seed: int, vote: int, verdict: Verdict) -> None:
        """A verdict was given. One that was lost to time is not kept: it may be had the next time."""
        if verdict.missing in LASTING:
            self._ledger.note_verdict(self._occurrence, seed, vote, verdict)


class Ledger:
    """The ledger of one run; an asynchronous context manager that writes while it is open. See `open`.

    `version` is what the run goes on from, `lineage` says whose completions may be used, and `counts` is what became of
    what was remembered: reused_completions, discarded_completions, reused_verdicts.
    """

    def __init__(
        self,
        folder: Path,
        version: PolicyVersion,
        lineage: Lineage,
        remembered: dict[int, Remembered],
        made: dict[int, _Made],
        digest: str = "",
    ) -> None:
        self._path, self._remembered, self._made = folder / LEDGER_FILE, remembered, made
        self._digest = digest  # of the last step
        self.version, self.lineage = version, lineage
        self.counts: Counter[str] = Counter()
        self._writer: LedgerWriter | None = None

    async def __aenter__(self) -> Self:
        self._writer = LedgerWriter(self._path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._writer is not None
        await self._writer.close()

    @classmethod
    def open(cls, settings: RunSettings, restored: Restored | None, say: Callable[[str], None]) -> Ledger:
        """The ledger in `settings.output_dir`. A run that is no resume begins it anew.

        A resumed run goes on in the lineage of its checkpoint where no weights beyond the checkpoint were made in it,
        or where the run is deterministic and so repeats them to the last bit. Else it begins a new one.

        Args:
            settings: the run's.
            restored: the checkpoint's position; None where the run begins with the untrained policy.
            say: told what is used again, and what cannot be.

        Raises:
            ConfigError: the file is no ledger.
        """
        folder = Path(settings.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LEDGER_FILE
        if settings.resume_from_checkpoint is None:
            for name in (LEDGER_FILE, f"{LEDGER_FILE}-wal", f"{LEDGER_FILE}-shm"):
                (folder / name).unlink(missing_ok=True)
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
        ledger = cls(folder, version, lineage, remembered, made, digest)
        if remembered:
            num, verdicts = (sum(len(getattr(r, n)) for r in remembered.values()) for n in ("completions", "verdicts"))
            say(f"ledger: {num} completions and {verdicts} verdicts of {len(remembered)} groups are there already")
        return ledger

    # --- what was paid for

    def recall(self, occurrence: int, oldest_step: int) -> GroupMemory:
        """What is there of a group. Completions of weights older than `oldest_step`, or of none of the lineage's, are
        not; they are counted as discarded."""
        remembered = self._remembered.pop(occurrence, Remembered())
        usable = {
            index: completion
            for index, completion in remembered.completions.items()
            if all(self._is_usable(PolicyVersion.parse(span.version), oldest_step) for span in completion.versions)
        }
        self.counts["reused_completions"] += len(usable)
        self.counts["discarded_completions"] += len(remembered.completions) - len(usable)
        return GroupMemory(self, occurrence, Remembered(usable, remembered.verdicts))

    def _is_usable(self, version: PolicyVersion, oldest_step: int) -> bool:
        return version.step >= oldest_step and self.lineage.holds(version)

    def note_completion(self, occurrence: int, completion: Completion) -> None:
        """Keep what a replica wrote."""
        token_ids, logprobs, versions = packed(completion)
        values = (
            occurrence,
            completion.index,
            token_ids,
            logprobs,
            completion.finished,
            versions.decode(),
            completion.replica,
        )
        self._note(("INSERT OR REPLACE INTO completions VALUES (?, ?, ?, ?, ?, ?, ?)", values))

    def note_verdict(self, occurrence: int, seed: int, vote: int, verdict: Verdict) -> None:
        """Keep what the judge said of the pair of this seed."""
        values = (occurrence, seed, vote, verdict.model_dump_json())
        self._note(("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", values))

    def _note(self, statement: Statement) -> None:
        if self._writer is not None:
            self._writer.note(statement)

    # --- what was done

    async def record_step(
        self,
        version: PolicyVersion,
        groups: Sequence[Group],
        stats: StepStats,
        *,
        dropped: Sequence[tuple[int, str]],
    ) -> None:
        """Write down that `version` was made of `groups`; returns when it is committed. To be called before the push.

        Args:
            version: the new one.
            groups: in the order in which they were trained on.
            stats: of the learner.
            dropped: (occurrence, reason) of those that were passed over for this step.

        Raises:
            ServiceError: the ledger cannot be written; or the step was made before, in this lineage, of other groups or
                with other numbers.
        """
        assert self._writer is not None
        key = (version.lineage, version.step)
        rows = [(*key, place, group.prompt.occurrence, _numbers(group)) for place, group in enumerate(groups)]
        learned: dict[str, Any] = {name: getattr(stats, name) for name in STEP_NUMBERS}
        self._digest = step_digest(self._digest, version.label, learned, [row[3:] for row in rows])
        outcome = json.dumps(learned | {"marks": step_marks(learned), "digest": self._digest})
        before = self._made.pop(version.step, None)
        if before is not None:
            _check_replay(version, before, (outcome, [row[2:] for row in rows]))
            return
        await self._writer.write(
            ("INSERT INTO steps VALUES (?, ?, ?)", (*key, outcome)),
            *(("INSERT INTO trained VALUES (?, ?, ?, ?, ?)", row) for row in rows),
            *(("INSERT OR REPLACE INTO dropped VALUES (?, ?, ?, ?)", (*key, *drop)) for drop in dropped),
        )

    async def prune(self, next_prompt: int) -> None:
        """Forget completions and verdicts of groups before `next_prompt`: no checkpoint goes back to them."""
        assert self._writer is not None
        await self._writer.write(
            *((f"DELETE FROM {table} WHERE occurrence < ?", (next_prompt,)) for table in KEPT_FROM),
            *((KEEP_FROM, (fact, str(next_prompt))) for fact in KEPT_FROM.values()),
        )

    def metrics(self) -> dict[str, float]:
        """The ledger's part of a step's metrics, by TensorBoard name: counts since the start."""
        names = ("reused_completions", "discarded_completions", "reused_verdicts")
        return {f"sample/{name}": float(self.counts[name]) for name in names}


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


def _made_after(database: sqlite3.Connection, version: PolicyVersion) -> dict[int, _Made]:
    """The steps that an earlier life of the lineage made beyond this one; they are repeated."""
    made: dict[int, _Made] = {}
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


def _check_replay(version: PolicyVersion, before: _Made, now: _Made) -> None:
    for then, again in zip(before, now, strict=True):
        if then != again:
            raise ServiceError(
                f"step {version.step} was made before and is not what it was: {str(then)[:300]} then, "
                f"{str(again)[:300]} now. A deterministic run resumed with the settings that it had repeats itself to "
                "the last bit; set deterministic to false to go on in a new lineage"
            )


def completion_of(row: Sequence[Any]) -> Completion:
    """The completion in a row of the table `completions`."""
    _, place, token_ids, logprobs, finished, versions, replica = row
    spans = msgspec.json.decode(versions, type=tuple[VersionSpan, ...])
    return Completion(place, array("i", token_ids), array("d", logprobs), bool(finished), spans, replica)


def _numbers(group: Group) -> str:
    """What made the group's advantages, and the marks of all of it, for whoever checks them later."""
    placed = group.verdict.verdicts
    characters = [characters_of(text) for text in group.texts]
    numbers = {
        "verdict_scores": group.verdict.scores,
        "scores": group.scores_K,
        "rewards": group.rewards_K,
        "kl": group.kl_K,
        "length_terms": group.length_terms_K,
        "advantages": group.advantages_K,
        "finished": [completion.finished for completion in group.completions],
        "num_tokens": [len(completion.token_ids) for completion in group.completions],
        "answer_chars": [answer for answer, _ in characters],
        "thought_chars": [thought for _, thought in characters],
        "oldest": group.oldest_version.label,
        "versions": [version.label for version in sorted(group.versions)],
        "scored_by": group.scored_by.label if group.scored_by else None,
        "pairs": [[each.first, each.second, each.vote] for each in placed],
        "judged": [said(each.verdict) for each in placed],
        "unjudged": group.verdict.unjudged,
        "same_as": group.verdict.same_as,
    }
    verdicts = verdict_marks([each.verdict for each in placed], LASTING)
    marks = completion_marks(group.completions) | verdicts
    return json.dumps(numbers | {"marks": number_marks(numbers) | marks})
