"""`python -m trainer.ledger_check OUTPUT_DIR --max_lag N`: what is wrong in a run's ledger.

It reads the surviving lineage, which is the last one that was trained with its ancestors, each up to where the next one
branched off. There every step must be there once, with as many groups as each other; no place of the prompt stream may
be trained on twice or be skipped, but where its group was dropped; and what wrote a group must be an ancestor of the
weights that were trained on it, and at most max_lag steps older.

The ledger is read as it is, also while its run writes it. Prints a line for each thing found; exit code 1 where there
is any.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trainer.ledger_past import LEDGER_FILE
from trainer.lineage import Fork, Lineage
from wire.generation import PolicyVersion


@dataclass(frozen=True)
class TrainedGroup:
    """A row of the table `trained`. `version` is what the step made, `turn` the group's place in the step."""

    version: PolicyVersion
    turn: int
    occurrence: int
    numbers: str


@dataclass(frozen=True)
class History:
    """What a ledger says was done, over all lineages; steps in the order in which they were written down."""

    forks: Mapping[int, Fork]
    lineages: Sequence[int]
    steps: Sequence[PolicyVersion]
    trained: Sequence[TrainedGroup]
    dropped: Sequence[tuple[PolicyVersion, int]]

    @property
    def newest(self) -> int:
        """The lineage that survives: the last that made a step, or one that was begun later and has made none."""
        begun = max(self.lineages)
        has_steps = any(version.lineage == begun for version in self.steps)
        return self.steps[-1].lineage if has_steps else begun


@dataclass
class Surviving:
    """The part of a history that the weights of today come from."""

    lineage: Lineage
    steps: list[PolicyVersion] = field(default_factory=list)
    trained: list[TrainedGroup] = field(default_factory=list)  # in the order in which they were trained on
    dropped: list[tuple[PolicyVersion, int]] = field(default_factory=list)

    @classmethod
    def of(cls, history: History) -> Surviving:
        """The newest lineage's."""
        lineage = Lineage(history.newest, history.forks)
        return cls(
            lineage,
            sorted((v for v in history.steps if lineage.holds(v)), key=lambda v: (v.step, v.lineage)),
            sorted((g for g in history.trained if lineage.holds(g.version)), key=lambda g: (g.version.step, g.turn)),
            [(version, occurrence) for version, occurrence in history.dropped if lineage.holds(version)],
        )


def read_history(path: Path) -> History:
    """The history in the ledger at `path`, all of one moment.

    Raises:
        sqlite3.Error: it is not there, or it is no ledger.
    """
    with reading(path) as database:
        return history_in(database)


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The ledger at `path`, open to be read: all that is read in the context is of one moment.

    Raises:
        sqlite3.Error: it is not there, or it is no ledger.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as database:
        database.execute("BEGIN")
        yield database


def history_in(database: sqlite3.Connection) -> History:
    """The history in an open ledger."""
    begun = database.execute("SELECT lineage, parent, step FROM lineages").fetchall()
    steps = database.execute("SELECT lineage, step FROM steps ORDER BY rowid").fetchall()
    trained = database.execute("SELECT lineage, step, place, occurrence, numbers FROM trained").fetchall()
    dropped = database.execute("SELECT lineage, step, occurrence FROM dropped").fetchall()
    return History(
        {lineage: Fork(parent, step) for lineage, parent, step in begun if parent is not None},
        [row[0] for row in begun],
        [PolicyVersion(*row) for row in steps],
        [TrainedGroup(PolicyVersion(*row[:2]), *row[2:]) for row in trained],
        [(PolicyVersion(*row[:2]), row[2]) for row in dropped],
    )


def problems(path: Path, max_lag: int, lookahead: int = 0) -> list[str]:
    """What is wrong in the surviving lineage of the ledger at `path`, a line each; none where all is well.

    Args:
        path: of the database.
        max_lag: the run's.
        lookahead: the run's: by how many later ones a group may be overtaken.

    Raises:
        sqlite3.Error: it is not there, or it is no ledger.
    """
    history = read_history(path)
    if not history.lineages:
        return ["no lineage was ever begun"]
    return history_problems(history, Surviving.of(history), lambda _: max_lag, lookahead)


def history_problems(
    history: History, surviving: Surviving, max_lag: Callable[[PolicyVersion], int], lookahead: int
) -> list[str]:
    """`problems` of a history that was read; `max_lag` is that of the life that made the version."""
    return [
        *_wrong_forks(history),
        *_wrong_steps(surviving),
        *_wrong_sizes(surviving),
        *_wrong_places(surviving, lookahead),
        *_wrong_versions(surviving, history.forks, max_lag),
    ]


def _wrong_forks(history: History) -> Iterator[str]:
    made = {(version.lineage, version.step) for version in history.steps}
    for lineage, fork in history.forks.items():
        if fork.parent not in history.lineages:
            yield f"lineage {lineage} branches off lineage {fork.parent}, which was never begun"
            continue
        # A lineage's own first weights are its parent's; and one that made no step here may be older than the ledger.
        own = [version.step for version in history.steps if version.lineage == fork.parent]
        start = history.forks[fork.parent].step if fork.parent in history.forks else 0 if own else fork.step
        if fork.step > start and (fork.parent, fork.step) not in made:
            yield f"lineage {lineage} branches off {fork.parent}.{fork.step}, which was never made"


def _wrong_steps(surviving: Surviving) -> Iterator[str]:
    makers: dict[int, list[str]] = defaultdict(list)
    for version in surviving.steps:
        makers[version.step].append(version.label)
    for step in range(1, max(makers, default=0) + 1):
        if not makers[step]:
            yield f"step {step} is missing"
        elif len(makers[step]) > 1:
            yield f"step {step} was made {len(makers[step])} times: {', '.join(makers[step])}"


def _wrong_sizes(surviving: Surviving) -> Iterator[str]:
    turns: dict[PolicyVersion, list[int]] = {version: [] for version in surviving.steps}
    for group in surviving.trained:
        turns.setdefault(group.version, []).append(group.turn)
    usual = max(map(len, turns.values()), default=0)
    for version, found in turns.items():
        if version not in surviving.steps:
            yield f"groups were trained on in step {version.label}, which was never made"
        if found != list(range(usual)):
            yield f"step {version.label} was made of groups {found}, where a step is made of {usual}"


def _wrong_places(surviving: Surviving, lookahead: int) -> Iterator[str]:
    used: dict[int, list[str]] = defaultdict(list)
    for group in surviving.trained:
        used[group.occurrence].append(f"trained on in step {group.version.label}")
    for version, occurrence in surviving.dropped:
        used[occurrence].append(f"dropped for step {version.label}")
    overtaken = _overtaken([group.occurrence for group in surviving.trained])
    for place in range(max(used, default=-1) + 1):
        uses = used.get(place, [])
        if len(uses) > 1:
            yield f"prompt {place} was {' and '.join(uses)}"
        # One that is not used at the end may still be waited for, as long as it was not overtaken too often.
        num_later = overtaken(place)
        if not uses and (num_later > lookahead or not lookahead):
            yield f"prompt {place} was skipped"
        elif uses[:1] and "trained" in uses[0] and num_later > lookahead:
            yield f"prompt {place} was overtaken by {num_later} later ones, with a lookahead of {lookahead}"


def _overtaken(trained: Sequence[int]) -> Callable[[int], int]:
    """For a place: how many later ones were trained on before it, or at all if it was not."""
    before: dict[int, int] = {}
    ordered: list[int] = []
    for place in trained:
        before.setdefault(place, len(ordered) - bisect_right(ordered, place))
        insort(ordered, place)
    return lambda place: before[place] if place in before else len(ordered) - bisect_right(ordered, place)


def _wrong_versions(
    surviving: Surviving, forks: Mapping[int, Fork], max_lag: Callable[[PolicyVersion], int]
) -> Iterator[str]:
    for group in surviving.trained:
        trained_by = group.version
        name = f"prompt {group.occurrence}, trained on in step {trained_by.label}"
        try:
            numbers = json.loads(group.numbers)
            written_by = [PolicyVersion.parse(label) for label in (numbers["oldest"], *numbers["versions"])]
        except (ValueError, KeyError, TypeError) as error:
            yield f"{name}, has numbers that cannot be read: {error!r}"
            continue
        ancestors = Lineage(trained_by.lineage, forks)
        lag = trained_by.step - 1 - written_by[0].step
        bound = max_lag(trained_by)
        if lag > bound:
            yield f"{name}, was written by {written_by[0].label}: a lag of {lag}, where max_lag is {bound}"
        for version in dict.fromkeys(written_by):
            if version.step >= trained_by.step or not ancestors.holds(version):
                yield f"{name}, was written by {version.label}, which is no ancestor"


def main(argv: Sequence[str] | None = None) -> int:
    """Read, check, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--max_lag", type=int, required=True)
    parser.add_argument("--lookahead", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        found = problems(arguments.output_dir / LEDGER_FILE, arguments.max_lag, arguments.lookahead)
    except sqlite3.Error as error:
        found = [f"{arguments.output_dir / LEDGER_FILE} cannot be read: {error}"]
    print("\n".join(found) or "nothing is wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
