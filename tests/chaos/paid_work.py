"""What a run's ledger holds of completions and verdicts, and whether a later life asked for any of it again.

A row that is written again gets another row id, so what has the row id that it had was not asked for again.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.learner_kills import Broken
from trainer.ledger_check import Surviving, problems, read_history
from trainer.ledger_past import LEDGER_FILE
from trainer.lineage import Lineage
from wire.generation import PolicyVersion

Written = tuple[int, tuple[PolicyVersion, ...]]  # a completion's row id, and the weights that wrote it


@dataclass(frozen=True)
class Start:
    """Where a life goes on: the newest checkpoint's step and place in the prompt stream."""

    step: int = 0
    next_prompt: int = 0

    @classmethod
    def of(cls, output: Path) -> Start:
        """Of the life that is started next in this folder."""
        found = states_of(output)
        return cls(found[-1]["step"], found[-1]["next_prompt"]) if found else cls()


def states_of(output: Path) -> list[dict[str, int]]:
    """What the whole checkpoints in a run's folder say of themselves, in the order in which they were written."""
    paths = sorted(output.glob("checkpoint-*/state.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


@dataclass(frozen=True)
class Paid:
    """A ledger at one moment: row ids of completions by (occurrence, index), of verdicts by (occurrence, seed, vote);
    the lineage that survives; the last step; and the places trained on, by step, those of the surviving lineage."""

    completions: dict[tuple[int, int], Written]
    verdicts: dict[tuple[int, int, int], int]
    lineage: Lineage
    last_step: int
    trained: dict[int, list[int]]
    num_dropped: int


def read_paid(output: Path) -> Paid | None:
    """The ledger in a run's folder; None where it has no tables yet."""
    path = output / LEDGER_FILE
    try:
        history = read_history(path)
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as database:
            rows = database.execute("SELECT occurrence, place, rowid, versions FROM completions").fetchall()
            verdicts = database.execute("SELECT occurrence, seed, vote, rowid FROM verdicts").fetchall()
    except sqlite3.OperationalError:
        return None
    if not history.lineages:
        return None
    surviving = Surviving.of(history)
    trained: dict[int, list[int]] = {}
    for group in surviving.trained:
        trained.setdefault(group.version.step, []).append(group.occurrence)
    return Paid(
        {(occurrence, index): (rowid, _versions(spans)) for occurrence, index, rowid, spans in rows},
        {(occurrence, seed, vote): rowid for occurrence, seed, vote, rowid in verdicts},
        surviving.lineage,
        surviving.steps[-1].step if surviving.steps else 0,
        trained,
        len(surviving.dropped),
    )


def _versions(spans: str) -> tuple[PolicyVersion, ...]:
    return tuple(PolicyVersion.parse(span["version"]) for span in json.loads(spans))


@dataclass
class Accounts:
    """What became of what was paid for, over the lives of one run.

    Args:
        output: the run's folder.
        max_lag: the run's.
        prompts_per_step: the run's.
    """

    output: Path
    max_lag: int
    prompts_per_step: int
    num_checks: int = 0
    discarded: int = 0
    reused_completions: int = 0
    reused_verdicts: int = 0
    _last: Paid | None = None
    _before: Paid | None = None  # at the start of this life
    _start: Start = field(default_factory=Start)

    def begin(self) -> Start:
        """A life is about to start."""
        self._start, self._before = Start.of(self.output), self._last
        return self._start

    def look(self) -> Paid | None:
        """Compare the ledger with what it was the last time; returns it as it is now, None where there is none yet.

        Raises Broken where the surviving lineage is not as it must be, or where what was there and could be used was
        asked for again.
        """
        now = read_paid(self.output)
        if now is None:
            if self._last is not None:
                raise Broken(f"the ledger in {self.output} is gone")
            return None
        if found := problems(self.output / LEDGER_FILE, self.max_lag):
            raise Broken(f"the ledger in {self.output}: {'; '.join(found)}")
        self.num_checks += 1
        if self._last is not None:
            self._compare(self._last, now)
        self._last = now
        return now

    def end(self) -> Paid | None:
        """A life is over; see `look`."""
        now = self.look()
        if now is None or self._before is None:
            return now
        # What this life trained on, of what it had found. One that was broken off may have used more.
        used = {place for step, places in now.trained.items() if step > self._start.step for place in places}
        usable = {key for key, row in self._before.completions.items() if self._may_be_used(key[0], row, now)}
        kept = {key for key in usable if key[0] in used and now.completions.get(key) == self._before.completions[key]}
        self.reused_completions += len(kept)
        rewritten = {key[0] for key in self._before.completions if key not in usable}
        self.reused_verdicts += sum(key[0] in used - rewritten for key in self._before.verdicts if key[0] in used)
        return now

    def _compare(self, before: Paid, now: Paid) -> None:
        forgotten = min((state["next_prompt"] for state in states_of(self.output)), default=0)
        for key, row in before.completions.items():
            found = now.completions.get(key)
            if found == row or (found is None and key[0] < forgotten):
                continue
            if found is None:
                raise Broken(f"completion {key[1]} of prompt {key[0]} is gone from the ledger")
            if self._may_be_used(key[0], row, now):
                labels = ", ".join(version.label for version in row[1])
                raise Broken(f"completion {key[1]} of prompt {key[0]}, written by {labels}, was asked for again")
            self.discarded += 1
        for place, rowid in before.verdicts.items():
            if now.verdicts.get(place) != rowid and not (place not in now.verdicts and place[0] < forgotten):
                raise Broken(f"a verdict on prompt {place[0]} was asked for again, or is gone")

    def _may_be_used(self, occurrence: int, row: Written, now: Paid) -> bool:
        """Whether the life that began last may train on it."""
        num_before = max(0, occurrence - self._start.next_prompt)
        oldest_step = self._start.step + num_before // self.prompts_per_step - self.max_lag
        return all(now.lineage.holds(version) and version.step >= oldest_step for version in row[1])
