"""The runs of `benchmarks/off_policy.py` as a table and as figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

ON_POLICY, LAG_CORRECTED, LAG_UNCORRECTED = "on_policy", "lag_corrected", "lag_uncorrected"
CONTENDERS = (ON_POLICY, LAG_CORRECTED, LAG_UNCORRECTED)
HEADER = "contender        runs  truth before  after  std    lag mean  max  ess    logp gap  s a run"


@dataclass(frozen=True)
class Ran:
    """One run that has ended.

    `truth_*` are means over the held-out completions, 1..5; `lag_*` are over the groups that were trained on, in
    optimizer steps; `ess` (share of the tokens, of the importance weights that were used) and `logp_diff_std` (of
    learner minus replica, nats) are means over steps; `seconds` are those of training, without start and held-out.
    """

    contender: str
    seed: int
    episodes: int
    truth_before: float
    truth_after: float
    lag_mean: float
    lag_max: int
    ess: float
    logp_diff_std: float
    seconds: float


def table(runs: Sequence[Ran]) -> list[str]:
    """A line for each contender that has run; `std` is over its seeds."""
    return [HEADER, *(_line(name, of) for name in CONTENDERS if (of := _of(runs, name)))]


def result(runs: Sequence[Ran]) -> dict[str, float | bool | None]:
    """The last line of the program; None where there are too few runs to tell."""
    truth = {name: _mean([ran.truth_after for ran in _of(runs, name)]) for name in CONTENDERS}
    spread = _spread([ran.truth_after for ran in _of(runs, ON_POLICY)])
    fresh, corrected = truth[ON_POLICY], truth[LAG_CORRECTED]
    known = spread is not None and fresh is not None and corrected is not None
    within = abs(corrected - fresh) <= spread if known else None
    return {**truth, "spread": spread, "within_spread": within}


def _of(runs: Sequence[Ran], contender: str) -> list[Ran]:
    return [ran for ran in runs if ran.contender == contender]


def _line(name: str, runs: Sequence[Ran]) -> str:
    spread = _spread([ran.truth_after for ran in runs])
    return (
        f"{name:15}  {len(runs):4}  {fmean(ran.truth_before for ran in runs):12.3f}"
        f"  {fmean(ran.truth_after for ran in runs):5.3f}  {'-' if spread is None else f'{spread:.3f}':5}"
        f"  {fmean(ran.lag_mean for ran in runs):8.2f}  {max(ran.lag_max for ran in runs):3}"
        f"  {fmean(ran.ess for ran in runs):5.3f}  {fmean(ran.logp_diff_std for ran in runs):8.3f}"
        f"  {fmean(ran.seconds for ran in runs):7.0f}"
    )


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 4) if values else None


def _spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation."""
    return round(stdev(values), 4) if len(values) > 1 else None
