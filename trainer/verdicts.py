"""What the judge said since the last step, of every group: those that were dropped included.

Verdicts do not go missing at random: long completions run into limits first. So what is missing is shown by length too,
and groups that are dropped for want of verdicts count here like any other.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import get_args

from reward_server.consistency import cycles, flips
from wire.errors import ServiceError
from wire.judgement import GroupVerdict, MissingReason, PlacedVerdict, Verdict

QUARTERS = 4
LEAST_VERDICTS = 16  # fewer tell nothing of the judge's health


class VerdictRecord:
    """Counts verdicts until they are drained, once a step.

    Args:
        max_unreadable: share of unreadable verdicts beyond which the judge is sick, 0..1.
        per_step: verdicts that a step has, dropped groups apart. Where two steps come at once, the second finds a
            handful, and no fair sample: what comes last ran to a limit, and is missing more often than others.
    """

    def __init__(self, max_unreadable: float, per_step: int = LEAST_VERDICTS) -> None:
        self._max_unreadable = max_unreadable
        self._groups: list[tuple[GroupVerdict, tuple[int, ...]]] = []  # since the last drain
        self._unchecked: list[Verdict] = []  # since the last check that had enough of them
        # Why each of the latest is missing, if it is.
        self._latest: deque[MissingReason | None] = deque(maxlen=max(per_step, LEAST_VERDICTS))

    def note(self, group: GroupVerdict, lengths_K: Sequence[int]) -> None:
        """Take a group's verdicts in; `lengths_K` are its completions' lengths, in tokens."""
        self._groups.append((group, tuple(lengths_K)))
        self._unchecked += [placed.verdict for placed in group.verdicts]

    def check(self) -> None:
        """Whether the judge can be trained on.

        Raises:
            ServiceError: of at least `LEAST_VERDICTS` verdicts more than `max_unreadable` cannot be read.
        """
        total = len(self._unchecked)
        if total < LEAST_VERDICTS:
            return
        unreadable = [verdict.text for verdict in self._unchecked if verdict.missing == "unreadable"]
        self._unchecked = []
        if len(unreadable) > self._max_unreadable * total:
            raise ServiceError(
                f"{len(unreadable)} of the last {total} verdicts cannot be read, more than judge_max_unreadable "
                f"({self._max_unreadable:g}) allows: is judge_dialect the served judge's? "
                f"`python -m reward_server.check` tells. The last one ends: {unreadable[-1][-300:]!r}"
            )

    def drain(self) -> dict[str, float]:
        """Every judge metric by its TensorBoard name, and a fresh start; the latest verdicts are kept, to weigh a part
        of a step with. NaN where there is nothing to tell."""
        groups, self._groups = self._groups, []
        placed = [placed for group, _ in groups for placed in group.verdicts]
        given = [p.verdict for p in placed if p.verdict.missing is None]
        compared = [verdict for verdict in given if verdict.ranking is not None]
        num_completions = sum(len(group.scores) for group, _ in groups)
        flipped, swapped = _totals([flips(group.verdicts) for group, _ in groups])
        circular, triples = _totals([cycles(group.verdicts) for group, _ in groups])
        return {
            "judge/verdicts": len(placed),
            **self._missing(placed),
            **_missing_by_length(groups),
            "judge/attempts": _share(sum(p.verdict.attempts for p in placed), len(placed)),
            "judge/completion_tokens": _share(sum(p.verdict.completion_tokens for p in placed), len(placed)),
            "judge/seconds": _share(sum(p.verdict.seconds for p in placed), len(placed)),
            "judge/ties": _share(sum(verdict.ties for verdict in compared), len(compared)),
            "judge/contradictions": _share(sum(verdict.contradicts for verdict in compared), len(compared)),
            "judge/flips": _share(flipped, swapped),
            "judge/intransitive": _share(circular, triples),
            "judge/neutralised": _share(sum(p.verdict.neutralised > 0 for p in placed), len(placed)),
            "judge/unjudged": _share(sum(len(group.unjudged) for group, _ in groups), num_completions),
            "judge/duplicates": _share(sum(_num_copies(group) for group, _ in groups), num_completions),
        }

    def _missing(self, placed: Sequence[PlacedVerdict]) -> dict[str, float]:
        """The share of `placed` that is missing, in all and by reason. The latest before them count too where they are
        fewer than a step has or than `LEAST_VERDICTS`, unless there is none at all."""
        reasons = [p.verdict.missing for p in placed]
        self._latest.extend(reasons)
        counts = Counter(self._latest if 0 < len(reasons) < len(self._latest) else reasons)
        total = counts.total()
        shares = {f"judge/missing_{reason}": _share(counts[reason], total) for reason in get_args(MissingReason)}
        return {"judge/missing": _share(total - counts[None], total), **shares}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _totals(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(a for a, _ in pairs), sum(b for _, b in pairs)


def _num_copies(group: GroupVerdict) -> int:
    """Completions whose answer is another one's."""
    return sum(same != k for k, same in enumerate(group.same_as))


def _missing_by_length(groups: Sequence[tuple[GroupVerdict, tuple[int, ...]]]) -> dict[str, float]:
    """Share of completions without a score in each quarter of the lengths, the shortest first."""
    rows = sorted(
        (length, score is None)
        for group, lengths in groups
        for length, score in zip(lengths, group.scores, strict=True)
    )
    shares = {}
    for quarter in range(QUARTERS):
        part = rows[quarter * len(rows) // QUARTERS : (quarter + 1) * len(rows) // QUARTERS]
        shares[f"judge/missing_length_q{quarter + 1}"] = _share(sum(missing for _, missing in part), len(part))
    return shares
