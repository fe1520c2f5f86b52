r"""`python -m trainer.audit RUN`: whether a run was what its ledger says. RUN is the run's output_dir.

    python -m trainer.audit RUN               the whole ledger: order, lag, arithmetic, digests
    python -m trainer.audit RUN --step 120    replays a step from a checkpoint, on a learner of the run's own settings
    python -m trainer.audit RUN --group 731   shows one group: texts, pairs, verdicts, scores, rewards, advantages

The settings are the run's own, as the ledger has them for each of its lives. Read as it is, also while the run writes
it. A line for each thing found; the exit code is 0 where nothing is, 1 where something is, 2 for a mistake of the user.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.audit_group import group_lines
from trainer.audit_marks import altered_completions, altered_numbers, altered_steps, altered_verdicts
from trainer.audit_sums import wrong_rewards, wrong_scores
from trainer.ledger_check import history_problems
from trainer.material import training_material
from trainer.record import Record, RecordedGroup, recorded
from trainer.replay import replay_lines
from wire.generation import PolicyVersion
from wire.settings import run_program


@dataclass(frozen=True)
class Findings:
    """What an audit of a whole ledger found, a line each, and what it looked at."""

    lines: list[str]
    summary: str


def audit(record: Record) -> Findings:
    """Everything that can be known from the ledger alone."""
    lookahead = max(life.settings.lookahead for life in record.lives)
    lines = history_problems(record.history, record.surviving, lambda v: _max_lag(record, v), lookahead)
    broken: set[PolicyVersion] = set()
    num_from_numbers = 0
    for version in dict.fromkeys(group.trained.version for group in record.groups):
        groups = record.groups_of(version)
        found = [line for group in groups for line in altered_numbers(group)]
        if found:
            broken.add(version)
        lines += found or _wrong_step(record, version, groups)
        for group in groups:
            if group.numbers is not None:
                lines += [*altered_completions(record, group), *altered_verdicts(record, group)]
        num_from_numbers += sum(not _is_kept(record, group) for group in groups)
    lines += altered_steps(record, broken)
    return Findings(lines, _summary(record, num_from_numbers))


def _max_lag(record: Record, version: PolicyVersion) -> int:
    settings = record.settings_of(version)
    return settings.max_lag if settings else max(life.settings.max_lag for life in record.lives)


def _wrong_step(record: Record, version: PolicyVersion, groups: Sequence[RecordedGroup]) -> Iterator[str]:
    settings = record.settings_of(version)
    if settings is None:
        yield f"step {version.label}: the settings of the life that made it are missing"
        return
    for group in groups:
        yield from wrong_scores(group, settings)
    yield from wrong_rewards(groups, settings)


def _is_kept(record: Record, group: RecordedGroup) -> bool:
    """Whether the audit could go back to the group's completions and verdicts."""
    return group.occurrence >= max(record.kept_from("completions"), record.kept_from("verdicts"))


def _summary(record: Record, num_from_numbers: int) -> str:
    steps, num = record.surviving.steps, len(record.groups)
    digest = (list(record.step_numbers().values()) or [None])[-1]
    last = f"; the digest of step {steps[-1].label} is {(digest or {}).get('digest')}" if steps else ""
    pruned = ""
    if num_from_numbers:
        pruned = (
            f"; of {num_from_numbers} the completions and verdicts are pruned, and these were checked from their "
            "numbers on"
        )
    return f"{len(steps)} steps of {num} groups{pruned}{last}"


def arguments_in(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="trainer.audit", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's output_dir")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--step", type=int, help="replay this step from the nearest checkpoint before it")
    what.add_argument("--group", type=int, help="show the group at this place of the prompt stream")
    parser.add_argument(
        "--tolerance", type=float, default=1e-5, help="of a replay: largest relative difference that is none"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Read, check, print.

    Raises:
        ConfigError: there is no ledger, no such group, or the step cannot be replayed.
    """
    arguments = arguments_in(argv)
    with recorded(arguments.run) as record:
        if arguments.group is not None:
            print("\n".join(group_lines(record, arguments.group, training_material)))
            return 0
        if arguments.step is not None:
            lines, agrees = replay_lines(record, arguments.run, arguments.step, arguments.tolerance)
            print("\n".join(lines))
            return 0 if agrees else 1
        findings = audit(record)
    print("\n".join([*findings.lines, findings.summary, *([] if findings.lines else ["nothing is wrong"])]))
    return 1 if findings.lines else 0


if __name__ == "__main__":
    run_program(main)
