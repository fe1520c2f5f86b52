"""`python -m benchmarks.signal`: which pairing and aggregation buys the most training signal for a judge's tokens.

Everything is planted: the qualities, the judge's errors (`benchmarks.planted_judge`), which verdicts go missing, the
tokens of a call (`benchmarks.signal_schemes`), and a small policy whose exact gradient is known
(`benchmarks.signal_policy`). The truth is what the judge would say on average; errors that it repeats in every verdict
no pairing can remove, and they are left out. Everything is held against the published ring (`PUBLISHED`).

    tau        rank correlation of a group's scores with the truth; a pair without both scores counts as a tie
    kept       share of the completions that get an advantage
    noise      variance of the gradient that a million judge tokens buy, over the squared exact gradient, once the
               estimate is scaled so that its mean has the exact gradient's length along it
    stray      length of the mean estimate's part across the exact gradient, over its part along it
    Mtokens    judge tokens (millions) until RLOO with Adam has raised the mean truth of the policy from 3 to `--mark`,
               with equal judge tokens a step, at the learning rate of `RATES` that is best for the published ring
    own rate   the same, but each at the rate that is best for itself
    leak       what the judge's bias for place 1 moves advantages by: root mean square over completions of the expected
               shift, points

The last line is JSON: `tokens_ratio` and `variance_ratio` are the service's default over the published ring (Mtokens
and noise), with standard errors over seeds; `bias_leak` is the default's, the larger of complete and censored verdicts.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from benchmarks.aggregation import kendall
from benchmarks.planted_judge import NoisyJudge
from benchmarks.signal_policy import FEATURES, Array, Sampler, World, tokens_to_truth
from benchmarks.signal_schemes import (
    DEFAULT,
    MATCHING,
    PUBLISHED,
    RING_LEAST_SQUARES,
    RING_MEAN,
    SINGLE,
    Bench,
    Way,
    ways_for,
)
from trainer.rloo import leave_one_out

RATES = (0.01, 0.015, 0.02, 0.03, 0.04, 0.06)
LIMIT_TOKENS = 1e8
TUNING_SEED, TUNINGS = 10_000, 16  # worlds in which the learning rate is chosen
CENSORED = 0.2  # share of missing verdicts of the second leak
DRAWS, SETTLING_GROUPS = 16, 500  # of the leak: verdicts of one group in each half; groups judged before it is taken

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Signal:
    """What groups of a uniform policy tell, one entry a world (W).

    `variance_W`: of the gradient estimate from one group; `gain_W`: the mean estimate's part along the exact gradient
    as a multiple of it; `stray_W`: squared length of the part across; `squared_W`: squared length of the exact one.
    """

    calls: float
    tau: float
    kept: float
    tokens_W: Array
    variance_W: Array
    gain_W: Array
    stray_W: Array
    squared_W: Array

    def noise(self, worlds: Mask) -> float:
        """See the module."""
        one_group = float(self.variance_W[worlds].mean() / self.gain_W[worlds].mean() ** 2)
        return one_group * float(self.tokens_W[worlds].mean() / self.squared_W[worlds].mean()) / 1e6

    @property
    def stray(self) -> float:
        """See the module."""
        across = max(0.0, float(self.stray_W.mean()))
        return math.sqrt(across / float(self.squared_W.mean())) / float(self.gain_W.mean())


def signal(way: Way, num: int, bench: Bench, worlds: Sequence[World], num_groups: int, true: bool = False) -> Signal:
    """Judge `num_groups` groups of `num` completions in each world; `true`: as if the verdicts told the qualities."""
    rows, taus, kept, calls = [], [], 0, 0
    for index, world in enumerate(worlds):
        sampler = Sampler(world, bench, way, num, f"signal {index} {num}")
        exact_D = world.gradient(sampler.policy(np.zeros(FEATURES)))
        groups = [sampler.group() for _ in range(num_groups)]
        ascent_GD = np.array([group.true_ascent_D if true else group.ascent_D for group in groups])
        scored_G = np.array([num if true else group.num_scored for group in groups])
        mean_D = ascent_GD.sum(axis=0) / scored_G.sum()
        # The denominator varies with the group: this is the first-order variance of the ratio of sums.
        rest_GD = (ascent_GD - scored_G[:, None] * mean_D) / scored_G.mean()
        squared = float(exact_D @ exact_D)
        gain = float(mean_D @ exact_D) / squared
        across_D, across_GD = mean_D - gain * exact_D, rest_GD - np.outer(rest_GD @ exact_D / squared, exact_D)
        # A mean of a finite number of groups strays by chance: that much is taken off.
        stray = float(across_D @ across_D) - float(np.sum(across_GD**2)) / num_groups**2
        tokens = fmean(group.tokens for group in groups)
        rows.append((tokens, float(np.sum(rest_GD**2)) / num_groups, gain, stray, squared))
        taus += [kendall(group.scores, group.truths) for group in groups]
        kept += int(scored_G.sum())
        calls += sum(group.num_calls for group in groups)
    total = num_groups * len(worlds)
    return Signal(calls / total, fmean(taus), kept / total / num, *np.array(rows).T)


def jackknife(statistic: Callable[[Mask], float], num: int) -> tuple[float, float]:
    """(statistic of all `num` samples, its standard error from leaving out one at a time)."""
    without = np.array([statistic(np.arange(num) != left_out) for left_out in range(num)])
    return statistic(np.ones(num, dtype=bool)), math.sqrt((num - 1) * float(np.var(without)))


def noise_ratio(one: Signal, other: Signal) -> tuple[float, float]:
    """Noise of the one over the other's, with its standard error over the worlds they share."""
    return jackknife(lambda worlds: one.noise(worlds) / other.noise(worlds), len(one.tokens_W))


def mean_ratio(one: Array, other: Array) -> tuple[float, float]:
    """Mean of the one over the other's, with its standard error over the seeds they share."""
    return jackknife(lambda seeds: float(one[seeds].mean() / other[seeds].mean()), len(one))


@dataclass(frozen=True)
class Course:
    """What is trained: worlds of the seeds, up to the `mark`."""

    mark: float
    step_tokens: float
    seeds: Sequence[int]

    def tokens(self, way: Way, num: int, bench: Bench, rate: float) -> Array:
        """Judge tokens to the mark, one entry a seed."""
        found = []
        for seed in self.seeds:
            world = World.drawn(seed)
            sampler = Sampler(world, bench, way, num, f"course {seed} {num}")
            found.append(tokens_to_truth(sampler, world, self.mark, rate, self.step_tokens, LIMIT_TOKENS))
        return np.array(found)

    def best_rate(self, way: Way, num: int, bench: Bench) -> float:
        """That one of `RATES` with the fewest tokens on average, over worlds of other seeds."""
        tuning = replace(self, seeds=[TUNING_SEED + seed for seed in self.seeds[:TUNINGS]])
        return min(RATES, key=lambda rate: float(tuning.tokens(way, num, bench, rate).mean()))


def bias_leak(way: Way, num: int, bench: Bench, num_groups: int, seed: int) -> float:
    """See the module. The same groups, losses and noise are judged with the bias and without.

    The square of an expected shift is estimated by the product of the means of two independent halves of the draws: the
    square of one mean would count its own noise as a leak.
    """
    world, rng = World.drawn(seed), random.Random(f"leak {seed}")
    benches = [replace(bench, judge=replace(bench.judge, bias=bias)) for bias in (0.0, bench.judge.bias)]
    scorers = [way.scorer() for _ in benches]

    def advantages_of(side: int, drawn: _Drawn, noise_seed: str) -> list[float | None]:
        calls, lost, truths = drawn
        return leave_one_out(scorers[side](num, benches[side].verdicts(calls, lost, truths, random.Random(noise_seed))))

    for group in range(SETTLING_GROUPS):
        drawn = _drawn_group(world, bench, way, num, rng)
        for side in range(2):
            advantages_of(side, drawn, f"{seed} {group}")
    products: list[float] = []
    for group in range(num_groups):
        drawn = _drawn_group(world, bench, way, num, rng)
        halves = []
        for half in range(2):
            shifts = []
            for draw in range(DRAWS):
                plain, biased = (advantages_of(side, drawn, f"{seed} {group} {half} {draw}") for side in range(2))
                shifts.append([b - p for p, b in zip(plain, biased, strict=True) if p is not None and b is not None])
            halves.append(np.mean(shifts, axis=0))  # what is missing does not depend on the draw
        products += list(halves[0] * halves[1])
    return math.sqrt(max(0.0, fmean(products)))


_Drawn = tuple[list[tuple[int, int | None]], list[bool], list[float]]  # calls, losses, qualities


def _drawn_group(world: World, bench: Bench, way: Way, num: int, rng: random.Random) -> _Drawn:
    x = rng.randrange(len(world.quality_XM))
    y_K = [rng.randrange(world.quality_XM.shape[1]) for _ in range(num)]
    calls = way.calls(num, rng)
    lost = bench.losses(calls, world.length_XM[x, y_K].tolist(), world.pair_length, rng)
    return calls, lost, world.quality_XM[x, y_K].tolist()


def looks_of(judge: NoisyJudge, seed: int, num: int = 20_000) -> dict[str, float]:
    """How this judge would look in a log, as shares.

    `exact`: its score in place 2, where nothing is liked, is the quality in whole points; `ties`: two equal scores;
    `flips`: asked in the other order it prefers the same place.
    """
    world, rng = World.drawn(seed), random.Random(seed)
    qualities = world.quality_XM.ravel().tolist()
    exact, ties, flips = 0, 0, 0
    for _ in range(num):
        a, b = rng.choice(qualities), rng.choice(qualities)
        there, back = judge.verdict(a, b, rng), judge.verdict(b, a, rng)
        assert there.scores and there.ranking and back.ranking
        exact += there.scores[1] == min(5, max(1, round(b)))
        ties += there.ties
        flips += (there.ranking <= 3) == (back.ranking <= 3)
    return {"exact": exact / num, "ties": ties / num, "flips": flips / num}


def table(completions: Sequence[int], bench: Bench, course: Course, worlds: Sequence[World], num_groups: int) -> None:
    """Every way for every K."""
    print("K  way                              calls  ktokens  tau    kept   noise  stray  Mtokens")
    for num in completions:
        rate = course.best_rate(PUBLISHED, num, bench)
        for way in ways_for(num):
            found = signal(way, num, bench, worlds, num_groups)
            spent = course.tokens(way, num, bench, rate)
            error = spent.std(ddof=1) / math.sqrt(len(spent))
            print(
                f"{num}  {way.name:31}  {found.calls:5.0f}  {found.tokens_W.mean() / 1e3:7.1f}  {found.tau:.3f}"
                f"  {found.kept:.3f}  {found.noise(everywhere(worlds)):5.2f}  {found.stray:5.2f}"
                f"  {spent.mean() / 1e6:5.2f} ± {error / 1e6:.2f}",
                flush=True,
            )
        ideal = signal(PUBLISHED, num, bench, worlds, num_groups, true=True)
        print(f"{num}  the truth, at the ring's tokens  {' ' * 30}{ideal.noise(everywhere(worlds)):5.2f}", flush=True)


def everywhere(worlds: Sequence[World]) -> Mask:
    """All of them."""
    return np.ones(len(worlds), dtype=bool)


WATCHED = tuple({way.name: way for way in (DEFAULT, RING_MEAN, RING_LEAST_SQUARES, SINGLE, MATCHING)}.values())


def contenders(
    bench: Bench, course: Course, worlds: Sequence[World], num_groups: int, rate: float
) -> dict[str, tuple[float, ...]]:
    """The ways watched against the published ring, for K = 4. Returns the default's ratios with their errors."""
    base = signal(PUBLISHED, 4, bench, worlds, num_groups)
    base_spent = course.tokens(PUBLISHED, 4, bench, rate)
    print(f"over the published ring (its rate {rate})  noise         Mtokens       own rate")
    found = {}
    for way in WATCHED:
        noise = noise_ratio(signal(way, 4, bench, worlds, num_groups), base)
        tokens = mean_ratio(course.tokens(way, 4, bench, rate), base_spent)
        own_rate = course.best_rate(way, 4, bench)
        own = mean_ratio(course.tokens(way, 4, bench, own_rate), base_spent)
        cells = "  ".join(f"{ratio:.2f} ± {error:.3f}" for ratio, error in (noise, tokens, own))
        print(f"{way.name:39}  {cells} at {own_rate}", flush=True)
        found[way.name] = (*tokens, *noise)
    return found


def dependence(bench: Bench, course: Course, worlds: Sequence[World], num_groups: int, rate: float) -> None:
    """How the ratios to the published ring depend on what was assumed, for K = 4: noise ratio and Mtokens ratio."""
    judge = bench.judge
    assumed = {
        "as above": bench,
        **{f"mood {mood}": replace(bench, judge=replace(judge, mood=mood)) for mood in (0.0, 1.0)},
        **{f"noise {noise}": replace(bench, judge=replace(judge, noise=noise)) for noise in (0.25, 1.0)},
        **{f"bias {bias}": replace(bench, judge=replace(judge, bias=bias)) for bias in (0.0, 1.0)},
        **{f"missing {share}": replace(bench, missing=share) for share in (0.0, CENSORED)},
        "single output as pair's": replace(bench, single_output=bench.pair_output),
    }
    print("noise and Mtokens over the published ring's")
    print(f"{'K = 4':23}" + "".join(f"  {way.name:22}" for way in WATCHED) + "  the truth")
    for name, case in assumed.items():
        base = signal(PUBLISHED, 4, case, worlds, num_groups)
        spent = course.tokens(PUBLISHED, 4, case, rate)
        cells = []
        for way in WATCHED:
            noise, _ = noise_ratio(signal(way, 4, case, worlds, num_groups), base)
            tokens, error = mean_ratio(course.tokens(way, 4, case, rate), spent)
            cells.append(f"  {noise:.2f}  {tokens:.2f} ± {error:.2f}".ljust(24))
        ideal, _ = noise_ratio(signal(PUBLISHED, 4, case, worlds, num_groups, true=True), base)
        print(f"{name:23}" + "".join(cells) + f"  {ideal:.2f}", flush=True)


def leaks(bench: Bench, num_groups: int) -> dict[str, float]:
    """The leak of each way watched, for K = 4: the largest over shares of missing verdicts."""
    shares, worst = (0.0, bench.missing, CENSORED), {}
    print(f"{'leak by share of missing verdicts':33}" + "".join(f"  {share:<5}" for share in shares))
    for way in (PUBLISHED, *WATCHED):
        found = [bias_leak(way, 4, replace(bench, missing=share), num_groups, seed=1) for share in shares]
        print(f"{way.name:33}" + "".join(f"  {leak:.3f}" for leak in found), flush=True)
        worst[way.name] = max(found)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, nargs="+", default=[4, 2, 8], help="K of the table.")
    parser.add_argument("--worlds", type=int, default=8, help="In which noise is measured.")
    parser.add_argument("--groups", type=int, default=1000, help="Judged in each of them.")
    parser.add_argument("--seeds", type=int, default=24, help="Policies trained for each figure.")
    parser.add_argument("--leak_groups", type=int, default=300, help="In which the leak is measured.")
    parser.add_argument("--mark", type=float, default=3.6, help="Mean truth to reach, points.")
    parser.add_argument(
        "--step_tokens", type=float, default=75e3, help="Judge tokens of a step: 16 completions' rings."
    )
    parser.add_argument("--noise", type=float, default=NoisyJudge.noise, help="Of each score, points.")
    parser.add_argument("--mood", type=float, default=NoisyJudge.mood, help="Common to a verdict, points.")
    parser.add_argument("--bias", type=float, default=NoisyJudge.bias, help="Liking for place 1, points.")
    parser.add_argument("--missing", type=float, default=Bench.missing, help="Share of pairs' verdicts that are lost.")
    flags = parser.parse_args()
    bench = Bench(NoisyJudge(flags.noise, flags.mood, flags.bias), flags.missing)
    course = Course(flags.mark, flags.step_tokens, range(flags.seeds))
    worlds = [World.drawn(seed) for seed in range(flags.worlds)]
    print("judge", "  ".join(f"{name} {share:.2f}" for name, share in looks_of(bench.judge, seed=1).items()))
    table(flags.completions, bench, course, worlds, flags.groups)
    rate = course.best_rate(PUBLISHED, 4, bench)
    many = replace(course, seeds=range(4 * flags.seeds))
    tokens, tokens_error, noise, noise_error = contenders(bench, many, worlds, flags.groups, rate)[DEFAULT.name]
    dependence(bench, course, worlds, flags.groups, rate)
    figures = {
        "tokens_ratio": tokens,
        "tokens_ratio_error": tokens_error,
        "variance_ratio": noise,
        "variance_ratio_error": noise_error,
        "bias_leak": leaks(bench, flags.leak_groups)[DEFAULT.name],
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
