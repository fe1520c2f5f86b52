"""Which aggregation comes closer to the truth, over which pairing?

    python -m benchmarks.aggregation --groups 4000 --seed 1

The truth is planted: a group's qualities are drawn from a normal distribution around the middle of the scale. The judge
errs as one may fear of a generative judge: in each verdict it misreads each response by a noise of its own, is in a
mood that moves both scores of the verdict alike, likes place 1, and says whole points from 1 to 5. Its ranking is its
own difference of the two, in whole steps. Both aggregations see the same verdicts. By default moods are as large as the
noise; where they are much smaller (`--mood 0`) the mean is the better one, where they are larger least squares gains.

    tau    Kendall's rank correlation of the scores with the truth: pairs in the right order less pairs in the wrong
           one, as a share of all pairs; a tie counts for neither
    mse    mean squared error of the leave-one-out advantages, in points squared
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean, stdev

from benchmarks.planted_judge import NoisyJudge
from reward_server.aggregate import AGGREGATIONS, TIE_BREAK
from reward_server.pairings import drawn_order, pairing_named
from trainer.rloo import leave_one_out
from wire.judgement import PlacedVerdict

PAIRINGS = ("ring", "ring_extra", "all_pairs", "both_orders")


@dataclass(frozen=True)
class Row:
    """One line of the table. `tau_gain` is of least squares over the mean, with its standard error."""

    completions: int
    pairing: str
    calls: int
    mean_tau: float
    least_squares_tau: float
    tau_gain: float
    tau_gain_error: float
    mean_mse: float
    least_squares_mse: float


def measure(judge: NoisyJudge, num: int, pairing: str, num_groups: int, seed: int, spread: float = 0.8) -> Row:
    """Judge `num_groups` groups of `num` completions whose qualities have a standard deviation of `spread` points."""
    rng = random.Random(f"{seed} {num} {pairing}")
    taus: dict[str, list[float]] = {name: [] for name in AGGREGATIONS}
    errors: dict[str, list[float]] = {name: [] for name in AGGREGATIONS}
    plan = pairing_named(pairing, calls=2 * num)
    calls = 0
    for _ in range(num_groups):
        truth = [rng.gauss(3, spread) for _ in range(num)]
        pairs = plan.pairs(drawn_order(num, rng.getrandbits(62)), {k: str(k) for k in range(num)})
        placed = [
            PlacedVerdict(first=a, second=b, verdict=judge.verdict(truth[a], truth[b], rng))
            for a, b in pairs
            if b is not None
        ]
        calls += len(placed)
        for name, aggregation in AGGREGATIONS.items():
            scores = aggregation(num, placed, tie_break=TIE_BREAK).scores
            taus[name].append(kendall(scores, truth))
            errors[name].append(squared_error(scores, truth))
    gains = [better - plain for better, plain in zip(taus["least_squares"], taus["mean"], strict=True)]
    return Row(
        completions=num,
        pairing=pairing,
        calls=calls // num_groups,
        mean_tau=fmean(taus["mean"]),
        least_squares_tau=fmean(taus["least_squares"]),
        tau_gain=fmean(gains),
        tau_gain_error=stdev(gains) / math.sqrt(num_groups),
        mean_mse=fmean(errors["mean"]),
        least_squares_mse=fmean(errors["least_squares"]),
    )


def kendall(scores: Sequence[float | None], truth: Sequence[float]) -> float:
    """Kendall's tau-a. A pair without both scores counts as a tie. No two qualities may be equal."""
    signs = []
    for a, b in combinations(range(len(truth)), 2):
        one, other = scores[a], scores[b]
        # Scores that differ by rounding of floats alone are a tie.
        tie = one is None or other is None or math.isclose(one, other, abs_tol=1e-9)
        agreement = 0 if tie else math.copysign(1, one - other)
        signs.append(agreement * math.copysign(1, truth[a] - truth[b]))
    return fmean(signs)


def squared_error(scores: Sequence[float | None], truth: Sequence[float]) -> float:
    """Mean squared error of the advantages."""
    pairs = zip(leave_one_out(scores), leave_one_out(truth), strict=True)
    return fmean((found - true) ** 2 for found, true in pairs if found is not None and true is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--noise", type=float, default=NoisyJudge.noise, help="of each score, points")
    parser.add_argument("--mood", type=float, default=NoisyJudge.mood, help="common to a verdict, points")
    parser.add_argument("--bias", type=float, default=NoisyJudge.bias, help="liking for place 1, points")
    args = parser.parse_args()
    judge = NoisyJudge(args.noise, args.mood, args.bias)
    rows = [measure(judge, num, pairing, args.groups, args.seed) for num in (4, 8) for pairing in PAIRINGS]
    print("                      tau                                  mse")
    print("K  pairing      calls  mean   least squares  gain            mean   least squares")
    for row in rows:
        print(
            f"{row.completions}  {row.pairing:12} {row.calls:5}"
            f"  {row.mean_tau:.3f}  {row.least_squares_tau:<13.3f}  {row.tau_gain:+.3f} ± {row.tau_gain_error:.3f}"
            f"  {row.mean_mse:.3f}  {row.least_squares_mse:.3f}"
        )
    figures = [{name: _short(value) for name, value in asdict(row).items()} for row in rows]
    print(json.dumps({"groups": args.groups, "seed": args.seed, "judge": asdict(judge), "rows": figures}))


def _short(value: float | str) -> float | str:
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
