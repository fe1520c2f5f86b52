"""What a judged file shows: how far judge and people agree, by margin and by domain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_server.agreement import Figures, JudgedPair
from reward_server.preferences import PreferencePair
from reward_server.rows import Row
from wire.judgement import PlacedVerdict


@dataclass(frozen=True)
class Summary:
    """Rows and verdicts of a whole file, and the figures of its pairs: all, by |preference| and by domain."""

    num_rows: int
    num_skipped: int
    num_verdicts: int
    num_missing: int
    pairs: dict[str, Figures]

    @classmethod
    def of(cls, rows: Sequence[Row], done: Mapping[int, Sequence[PlacedVerdict]], num_skipped: int) -> Summary:
        """Count over the rows that are done."""
        sorts: dict[str, list[JudgedPair]] = defaultdict(list)
        for row in rows:
            if isinstance(row.task, PreferencePair):
                in_order, turned = (placed.verdict for placed in done[row.number])
                judged = JudgedPair(row.task, in_order, turned)
                for sort in ("all", f"margin {abs(row.task.preference)}", f"domain {row.task.domain or 'unknown'}"):
                    sorts[sort].append(judged)
        verdicts = [placed.verdict for row in rows for placed in done[row.number]]
        return cls(
            num_rows=len(rows),
            num_skipped=num_skipped,
            num_verdicts=len(verdicts),
            num_missing=sum(verdict.missing is not None for verdict in verdicts),
            pairs={sort: Figures.of(sorts[sort]) for sort in sorted(sorts)},
        )

    def lines(self) -> list[str]:
        """A table for people."""
        missing = f"{self.num_missing} of {self.num_verdicts} verdicts missing"
        lines = [f"{self.num_rows} rows, {self.num_skipped} skipped; {missing}"]
        if self.pairs:
            lines.append(
                f"{'':<22}{'pairs':>7}{'compared':>10}{'agreement':>11}{'undecided':>11}{'flips':>8}{'ties':>8}"
            )
        for sort, f in self.pairs.items():
            shares = f"{_percent(f.agreement):>11}{_percent(f.undecided_share):>11}{_percent(f.flip_share):>8}"
            lines.append(f"{sort:<22}{f.num_pairs:>7}{f.num_compared:>10}{shares}{_percent(f.tie_share):>8}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """The same for machines."""
        return {
            "rows": self.num_rows,
            "skipped": self.num_skipped,
            "verdicts": self.num_verdicts,
            "missing": self.num_missing,
            "pairs": {sort: _shares(figures) for sort, figures in self.pairs.items()},
        }


def _shares(f: Figures) -> dict[str, Any]:
    return {
        "pairs": f.num_pairs,
        "compared": f.num_compared,
        "agreement": f.agreement,
        "undecided": f.undecided_share,
        "flips": f.flip_share,
        "ties": f.tie_share,
        "contradictions": f.contradiction_share,
        "missing": f.missing,
    }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
