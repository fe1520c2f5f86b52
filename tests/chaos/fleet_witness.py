"""What must hold while replicas are struck: they serve the learner's weights, and no group is lost or used twice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.fleet_ground import Ground, Run
from tests.chaos.fleet_weights import checksums_of
from tests.chaos.learner_kills import Broken


@dataclass
class Report:
    """What was done, and what was found. Times in seconds.

    `in_transfer`: strikes at a replica that was loading, by its own word, just before, and just after it too; where it
    cannot say so any more, the run counted a transfer that had to be repeated. `recovery_beyond_deadline_max_s`: from a
    strike that broke a transfer until all other replicas in it served the version, less the transfer's deadline.
    `lost_unharmed`: replicas that the run parted with though nobody had touched them. `groups`: trained on.
    """

    kills: int = 0
    in_transfer: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    steps: int = 0
    recovery_max_s: float = 0.0
    recovery_beyond_deadline_max_s: float = 0.0
    checksums_compared: int = 0
    groups: int = 0
    lost_groups: int = 0
    repeated_groups: int = 0
    lost_unharmed: int = 0
    seed: int = 0
    seconds: float = 0.0
    ok: bool = False

    def note_recovery(self, took_s: float, deadline_s: float) -> None:
        """A transfer that broke was whole again, over the others, after `took_s`."""
        self.recovery_max_s = round(max(self.recovery_max_s, took_s), 2)
        beyond_s = round(max(0.0, took_s - deadline_s), 2)
        self.recovery_beyond_deadline_max_s = max(self.recovery_beyond_deadline_max_s, beyond_s)


@dataclass
class Witness:
    """Compares what replicas serve with what the learner wrote, and counts what runs trained on.

    Args:
        ground: the services.
        report: takes note.
    """

    ground: Ground
    report: Report
    _expected: dict[Path, dict[str, str]] = field(default_factory=dict)
    _pending: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def compare(self, run: Run, url: str) -> bool:
        """Take down what the replica at `url` serves, if it serves; compare what the learner has written meanwhile.

        Returns whether it serves. Raises Broken as `settle` does.
        """
        found = self.ground.replicas.holds(url)
        if found is not None:
            self._pending.append((url, *found))
        self.settle(run)
        return found is not None

    def settle(self, run: Run, *, is_over: bool = False) -> None:
        """Compare what was taken down with the policies that are written by now. Raises Broken where they differ,
        or where one was never written though the run is over."""
        rest = []
        for url, label, checksums in self._pending:
            folder = run.policy_of(label, self.ground.policy)
            if folder is None:
                rest.append((url, label, checksums))
                continue
            if folder not in self._expected:
                self._expected[folder] = checksums_of(folder)
            expected = self._expected[folder]
            wrong = [key for key in expected.keys() | checksums.keys() if expected.get(key) != checksums.get(key)]
            if wrong:
                raise Broken(f"{url} serves as version {label} what the learner never had: {', '.join(sorted(wrong))}")
            self.report.checksums_compared += 1
        self._pending = rest
        if rest and is_over:
            raise Broken(f"the learner never wrote versions {sorted({label for _, label, _ in rest})}")

    def count(self, run: Run) -> None:
        """What the run trained on: each place of the prompt stream once, but those whose groups were dropped.

        Raises Broken where a step, or a group, is missing or there twice.
        """
        lines = run.lines()
        trained = [place for line in lines for place in line["prompts"]]
        if [line["step"] for line in lines] != list(range(1, run.steps + 1)):
            raise Broken(f"steps {[line['step'] for line in lines]} were taken, of {run.steps}")
        summary = json.loads((run.output / "summary.json").read_text())
        if summary["steps"] != run.steps:
            raise Broken(f"the summary tells of {summary['steps']} steps of {run.steps}")
        self.report.steps += run.steps
        self.report.groups += len(trained)
        self.report.repeated_groups += len(trained) - len(set(trained))
        self.report.lost_groups += max(trained) + 1 - len(set(trained)) - lines[-1]["dropped"]
        if self.report.repeated_groups or self.report.lost_groups:
            raise Broken(f"{self.report.lost_groups} groups lost, {self.report.repeated_groups} trained on twice")
