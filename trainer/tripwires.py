"""Limits on a run's vital signs: beyond one a warning is said, beyond another the run stops with a checkpoint.

A limit is written NAME>VALUE or NAME<VALUE, in `warn_at` and `stop_at`; the names are those of `QUANTITIES`. A single
step of a few groups is noisy, so a quantity that every step has must be beyond its stop limit at `PATIENCE` steps in a
row; one that an evaluation gives is a mean over all held-out prompts, the next may be a hundred steps away, and it
stops the run at once. Warnings wait for nothing: one line says that a warning began, one that it ended. A step without
a value tells nothing either way.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wire.errors import ConfigError, ServiceError

NONE = "none"  # in place of limits: a flag cannot be given without a value
PATIENCE = 3  # steps in a row beyond a stop limit
BEYOND: dict[str, Callable[[float, float], bool]] = {">": operator.gt, "<": operator.lt}
WORDS = {">": "above", "<": "below"}
FORM = re.compile(r"\s*([^<>\s]+)\s*([<>])\s*([^<>]*?)\s*")


@dataclass(frozen=True)
class Quantity:
    """What a tripwire looks at: its metric, the sides that can be limited, whether it is a share (0 to 1), and for how
    many steps in a row it must be beyond a stop limit."""

    metric: str
    sides: str = ">"
    is_share: bool = False
    patience: int = PATIENCE


QUANTITIES = {
    "kl": Quantity("objective/kl"),
    "entropy": Quantity("policy/entropy_avg", sides="<>"),
    "length": Quantity("sample/length_mean", sides="<>"),
    "truncated": Quantity("sample/truncated", is_share=True),
    "missing": Quantity("judge/missing", is_share=True),
    "logp_gap": Quantity("sampling/gap_std"),
    "judge_gap": Quantity("eval/judge_gap", patience=1),
    "judge_gap_low": Quantity("eval/judge_gap_low", patience=1),
    "score_gap_low": Quantity("eval/score_gap_low", patience=1),
}
WARN_AT = (
    "kl>50",  # at kl_coef 0.01, half a point of score paid for being elsewhere
    "entropy<0.05",  # nats a token: a group's completions are nearly one and the same
    "entropy>5",  # language has 1 to 3
    "length<4",  # hardly an answer
    "truncated>0.5",
    "missing>0.1",  # as check_max_missing
    "logp_gap>0.1",  # between max_first_logp_gap and max_logp_gap, which stops by itself
    "judge_gap>0.15",  # two standard errors of an evaluation of 64 prompts
    "judge_gap_low>0",  # likewise, of any number: one in forty evaluations of a healthy run
    "score_gap_low>0",  # likewise
)
# Nothing that a healthy run passes through. How far kl, entropy and length may go is a matter of the data; logp_gap
# has a gate of its own. Nearly all verdicts missing is a judge that is gone. judge_gap_low is the lower end of a 95 %
# interval: where the judges agree on 70 % of the prompts and neither is gamed, it is above 0.1 in one evaluation in
# 3,000 with 64 prompts (standard error 0.07), in 30,000 with 128. A limit on judge_gap itself fits one number only.
# score_gap_low sees a gamed judge sooner, for a score tells how far an answer wins, and an outcome only that it does.
# Where the margins of two honest judges differ by 1.2 points (standard deviation; standard error 0.15 with 64 prompts),
# it is above 0.25 by chance in one evaluation in 7,000. Else a run would have to gain a whole point by its own judge,
# and hear the second one grant about half of it.
STOP_AT = ("missing>0.9", "judge_gap_low>0.1", "score_gap_low>0.25")


@dataclass(frozen=True)
class Limit:
    """One side of one quantity. Its text is what it is written as: `kl>5`."""

    name: str
    side: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name}{self.side}{self.bound:g}"

    def is_passed_by(self, value: float) -> bool:
        """Whether the value lies beyond."""
        return BEYOND[self.side](value, self.bound)


class Tripped(ServiceError):
    """A quantity was beyond its stop limit for long enough."""


def parse_limits(setting: str, texts: Sequence[str]) -> list[Limit]:
    """The limits that the setting of this name holds.

    Raises:
        ConfigError: one is no limit, or a side of a quantity has two.
    """
    limits = [] if list(texts) == [NONE] else [_parse(setting, text) for text in texts]
    for (name, side), count in Counter((limit.name, limit.side) for limit in limits).items():
        if count > 1:
            raise ConfigError(f"{setting} has {count} limits {name}{side}...; give one")
    return limits


def _parse(setting: str, text: str) -> Limit:
    match = FORM.fullmatch(text)
    if match is None:
        raise ConfigError(f"{setting} {text!r} is no limit; write NAME>VALUE or NAME<VALUE, such as kl>20")
    name, side, number = match.groups()
    if name not in QUANTITIES:
        raise ConfigError(f"{setting} {text!r}: {name!r} is not among {', '.join(QUANTITIES)}")
    quantity = QUANTITIES[name]
    if side not in quantity.sides:
        raise ConfigError(f"{setting} {text!r}: {name} has no lower limit; write {name}>VALUE")
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise ConfigError(f"{setting} {text!r}: {number!r} is not a number; write {name}{side}VALUE")
    if quantity.is_share and not 0 <= bound < 1:
        raise ConfigError(f"{setting} {text!r}: {name} is a share; give a number from 0 to below 1")
    return Limit(name, side, bound)


def check_limits(warn_at: Sequence[str], stop_at: Sequence[str]) -> None:
    """Raises ConfigError where a limit cannot be read, or the run would stop before it warns."""
    warnings = {(limit.name, limit.side): limit for limit in parse_limits("warn_at", warn_at)}
    for stop in parse_limits("stop_at", stop_at):
        warning = warnings.get((stop.name, stop.side))
        if warning is not None and stop.is_passed_by(warning.bound):
            raise ConfigError(
                f"stop_at {stop} comes before warn_at {warning}: the run would end before it warns; give a stop limit "
                f"{WORDS[stop.side]} {warning.bound:g}, or another warn_at"
            )


class Tripwires:
    """Watches one run.

    Args:
        warn_at, stop_at: the settings.
        say: told when a warning begins and when it ends.

    Raises:
        ConfigError: a limit cannot be read.
    """

    def __init__(self, warn_at: Sequence[str], stop_at: Sequence[str], say: Callable[[str], None]) -> None:
        self._warn_at, self._stop_at = parse_limits("warn_at", warn_at), parse_limits("stop_at", stop_at)
        self._say = say
        self._since: dict[Limit, int] = {}  # of each warning that is on, the step that began it
        self._num_beyond = Counter[Limit]()  # steps in a row
        self._records: list[dict[str, Any]] = []

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at a step's metrics, by their TensorBoard names.

        Raises:
            Tripped: a quantity is beyond its stop limit, and has been for its patience.
        """
        for limit in self._warn_at:
            if (value := _value(limit, metrics)) is not None:
                self._warn(limit, step, value)
        for limit in self._stop_at:
            if (value := _value(limit, metrics)) is not None:
                self._stop(limit, step, value)

    @property
    def warnings(self) -> list[str]:
        """The warnings that are on, in words."""
        return [f"{limit} since step {step}" for limit, step in self._since.items()]

    def summary(self) -> list[dict[str, Any]]:
        """What was tripped, in order: name, step, value, limit, kind (warn or stop); for summary.json."""
        return list(self._records)

    def _warn(self, limit: Limit, step: int, value: float) -> None:
        if limit.is_passed_by(value):
            if limit not in self._since:
                self._since[limit] = step
                self._note(limit, step, value, "warn")
                self._say(f"warning: step {step}: {_words(limit, value)} (warn_at)")
        elif (began := self._since.pop(limit, None)) is not None:
            self._say(f"warning over: step {step}: {limit.name} is {value:.4g} again; {limit} since step {began}")

    def _stop(self, limit: Limit, step: int, value: float) -> None:
        self._num_beyond[limit] = self._num_beyond[limit] + 1 if limit.is_passed_by(value) else 0
        patience = QUANTITIES[limit.name].patience
        if self._num_beyond[limit] < patience:
            return
        self._note(limit, step, value, "stop")
        lasted = f", for {patience} steps in a row" if patience > 1 else ""
        raise Tripped(
            f"tripwire {limit.name} at step {step}: {_words(limit, value)} (stop_at){lasted}; look at its course in "
            "TensorBoard, then resume from a checkpoint with what caused it changed, or with another stop_at"
        )

    def _note(self, limit: Limit, step: int, value: float, kind: str) -> None:
        known = value if math.isfinite(value) else None  # JSON has no infinity
        self._records.append({"name": limit.name, "step": step, "value": known, "limit": limit.bound, "kind": kind})


def _value(limit: Limit, metrics: Mapping[str, float]) -> float | None:
    """The quantity's value at this step; None where it has none."""
    value = metrics.get(QUANTITIES[limit.name].metric, math.nan)
    return None if math.isnan(value) else value


def _words(limit: Limit, value: float) -> str:
    metric = QUANTITIES[limit.name].metric
    return f"{limit.name} ({metric}) is {value:.4g}, {WORDS[limit.side]} {limit.bound:g}"
