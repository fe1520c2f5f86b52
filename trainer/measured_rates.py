"""The rates of a run, measured while it trains and written to a file that preflight and simulation read.

Times come from the waits of `wire.waits`, lengths and verdicts from the groups that are trained on. They are times
under the run's own load: of a replica that has half of its slots in use the tokens are quicker than of a full one, and
a verdict's seconds hold its waiting in the service where the judge is the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median, pstdev

import yaml

from rollout_server.client import WRITES
from trainer.config import RunSettings
from trainer.group import Group
from trainer.ranks import ACCUMULATES, SCORES, SENDS, STEPS
from trainer.rates import Rates
from wire.waits import Wait

RATES_FILE = "rates.yaml"


class RateMeter:
    """Listens and adds up. `hear` is a listener of `wire.waits`, `note` is told of the groups of each step.

    Args:
        settings: the run's.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._learner: dict[str, list[float]] = {STEPS: [], ACCUMULATES: [], SCORES: [], SENDS: []}
        self._writing: dict[str, float] = {}  # by group: seconds that a replica wrote for it
        self._token_s: list[float] = []
        self._tokens: list[float] = []
        self._verdict_s: list[float] = []
        self._verdict_tokens: list[float] = []
        self._num_scored = 0

    def hear(self, wait: Wait, end: float) -> None:
        """A wait is over."""
        seconds = end - wait.since
        if wait.reason == WRITES:
            self._writing[wait.who] = max(seconds, self._writing.get(wait.who, 0.0))
        elif wait.peer == "learner 0" and wait.reason in self._learner:
            self._learner[wait.reason].append(seconds)

    def note(self, groups: Sequence[Group]) -> None:
        """These were trained on."""
        for group in groups:
            lengths = [len(completion.token_ids) for completion in group.completions]
            seconds = self._writing.pop(f"group {group.prompt.occurrence}", group.seconds.get("generate", 0.0))
            self._tokens += lengths
            self._token_s.append(seconds / max(lengths))  # the longest is written last: all K begin together
            self._num_scored += len(lengths)
            given = [placed.verdict for placed in group.verdict.verdicts if placed.verdict.missing is None]
            self._verdict_s += [verdict.seconds for verdict in given]
            self._verdict_tokens += [verdict.completion_tokens for verdict in given]

    def rates(self) -> Rates | None:
        """What was measured; None as long as a part was not seen."""
        steps, verdict_s = self._learner[STEPS], [seconds for seconds in self._verdict_s if seconds > 0]
        if not (self._tokens and steps and verdict_s and median(self._token_s) > 0):
            return None
        middle = median(verdict_s)
        return Rates(
            completion_tokens=fmean(self._tokens),
            completion_spread=_spread(self._tokens),
            token_s=median(self._token_s),
            verdict_s=middle,
            verdict_spread=_spread(verdict_s),
            verdict_tail=max(1.0, max(verdict_s) / middle),
            verdict_tokens=fmean(self._verdict_tokens),
            step_s=(sum(steps) + sum(self._learner[ACCUMULATES])) / len(steps),
            reference_s=sum(self._learner[SCORES]) * self._settings.num_learner_ranks / self._num_scored,
            push_s=fmean(self._learner[SENDS]) if self._learner[SENDS] else 0.0,
        )

    def write(self, path: Path) -> bool:
        """Write `rates.yaml` whole or not at all; false where there is nothing to write yet."""
        rates = self.rates()
        if rates is None:
            return False
        values = {n: float(f"{v:.4g}") if isinstance(v, float) else v for n, v in asdict(rates).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        aside.write_text("# Measured by a run, under its load.\n" + yaml.safe_dump(values, sort_keys=False))
        aside.rename(path)
        return True


def _spread(values: Sequence[float]) -> float:
    """Sigma of a log-normal: the standard deviation of the logarithms."""
    return pstdev([math.log(value) for value in values if value > 0])
