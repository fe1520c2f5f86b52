"""How many episodes an hour a run's parts allow, which of them is the bottleneck, and what to expect of all together.

Pure functions of a `Layout`. An episode is one completion; N = P K of them are a step; a group has V verdicts.

    fleet      slots / E[X]                                  X: seconds of a completion
    judge      slots / (E[W] V / K)                          W: seconds of a verdict
    learner    N / (step + push + N passes)                  one after the other; below ZeRO-3 passes go beside a push
    in flight  (max_lag + 1) N / latency                     Little's law; latency: a place's time with servers without
                                                             end, from a prompt's admission until its weights are live

The least of these is an upper bound. **What to expect** (`expected_step_s`) is reckoned batch by batch, because a
step takes its groups in the order of admission and so waits for the slowest of them:

1. *One batch alone.* Completion n of N starts when a slot is free, at about max(0, n - slots) E[X] / slots; the n-th
   verdict likewise by the judge's slots. A verdict is there Y + W after its completions' start s_n, where Y is the
   longer of the two completions it compares: P(Y + W <= t) =: H(t), a convolution. The batch is whole at time L with

       P(L <= t) = prod_n H(t - s_n)

   which is exact for independent verdicts and fixed starts. Verdicts of one group share completions and are
   positively correlated, so the true L is a little shorter.
2. *Batches in a row.* Batch i is admitted when batch i - 1 - max_lag was trained on and its weights are live (A_i),
   the fleet begins it when it has begun all of batch i - 1 (F_i), and so does the judge (J_i). With G = N E[X] / slots
   + push (replicas stand still meanwhile) and U likewise the judge's time of a batch,

       A_i = R_(i-1-max_lag)       F_i = max(A_i, F_(i-1) + G)       J_i = max(F_i, J_(i-1) + U)
       R_i = max(R_(i-1) + passes, J_i + L_i + last pass) + step + push

   Where a step is begun early, the learner works on a group once it is there, of which a share S(t) is at time t in a
   batch alone (the mean of P(Y + W <= t - s)^V over the groups' starts), and ends not before

       R_i = max(R_(i-1) + passes + step, J_i + D, J_i + L_i + last pass + f step) + push
       D = max_t(t + (1 - S(t)) (passes + step))

   with f the share of the last group and of half a part that was not full, and t as long as more than a part's groups
   are missing. `expected_step_s` is the mean of R_i - R_(i-1) with L_i drawn from its distribution and G, U from normal
   ones. With max_lag 0 and nothing begun early that is E[L] + last pass + step + push.

Left out: a batch's drawn-out end overlaps with the next batch's start, groups are bound to a replica once they are
sent, and a push delays what is being written once more than its share in G.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from trainer.durations import Duration
from trainer.rates import Layout

Array = np.ndarray[Any, np.dtype[np.float64]]

GRID = 3000  # points of the time axis: the mean of L is right to about a thousandth
STARTS = 400  # points over the batch's verdicts
BATCHES = 4000  # of which the recursion takes the mean: right to about 1 %
WARM = 50
HOUR_S = 3600.0
UNLIMITED = 10**9  # slots


def fleet_s(layout: Layout) -> float:
    """Seconds that all replicas' slots need for the completions of a step."""
    return layout.per_step * layout.completion.mean / layout.writing


def judge_s(layout: Layout) -> float:
    """Seconds that all GenRM servers' slots need for the verdicts of a step."""
    return layout.prompts * layout.verdicts * layout.verdict.mean / layout.judging


def passes_s(layout: Layout) -> float:
    """Seconds of a step's no-grad passes, shared out over the ranks."""
    return layout.per_step * layout.reference_s / layout.ranks


def learner_s(layout: Layout) -> float:
    """Seconds that the learner is busy with a step: its passes, the step, the push."""
    passes, push = passes_s(layout), layout.push_s
    return layout.step_s + (max(passes, push) if layout.push_beside else passes + push)


def whole_batch(layout: Layout) -> tuple[Array, Array]:
    """(times, P(L <= time)) of one batch alone, from its admission until all verdicts are there; see the top, 1."""
    times, log_one = _verdicts(layout)
    whole: Array = np.exp(log_one.sum(axis=1) * (layout.prompts * layout.verdicts / log_one.shape[1]))
    return times, whole


def share_whole(layout: Layout) -> tuple[Array, Array]:
    """(times, S(time)) of one batch alone: the share of its groups that have all their verdicts; see the top, 2."""
    times, log_one = _verdicts(layout)
    return times, np.exp(log_one * layout.verdicts).mean(axis=1)


def _verdicts(layout: Layout) -> tuple[Array, Array]:
    """(times (T), log P(Y + W <= time - s) (T, S)) of a verdict, in seconds; S starts s stand for all."""
    num_verdicts = layout.prompts * layout.verdicts
    share = (np.arange(min(num_verdicts, STARTS)) + 0.5) / min(num_verdicts, STARTS)
    starts = np.maximum(
        np.maximum(0.0, share * layout.per_step - layout.writing) * layout.completion.mean / layout.writing,
        np.maximum(0.0, share * num_verdicts - layout.judging) * layout.verdict.mean / layout.judging,
    )
    compared = 2 if layout.compares else 1
    longest = layout.completion.top + layout.verdict.top
    step = (longest + float(starts[-1])) / GRID
    times: Array = np.asarray(np.arange(1.0, GRID + 2.0) * step, dtype=np.float64)
    written = np.array([layout.completion.cdf(t) ** compared for t in times])
    judged = np.array([layout.verdict.cdf(t - step / 2) for t in times])  # in the middle: the sum of two cells
    one = np.convolve(np.diff(written, prepend=0.0), judged)[: len(times)]
    with np.errstate(divide="ignore"):
        log_one = np.log(np.minimum(one, 1.0))
        return times, np.interp(times[:, None] - starts[None, :], times, log_one, left=-np.inf)


def mean_of(times: Array, cdf: Array) -> float:
    """E[L], the integral of 1 - cdf."""
    return float(times[0] + ((1.0 - cdf) * np.diff(times, append=times[-1])).sum())


def expected_step_s(layout: Layout) -> float:
    """Mean seconds from step to step; see the top, 2."""
    return _expected_step_s(layout)


@lru_cache(maxsize=64)
def _expected_step_s(layout: Layout) -> float:
    times, cdf = whole_batch(layout)
    random, lag = Random(1), layout.max_lag
    fleet, judge = fleet_s(layout) + (layout.push_s if lag else 0.0), judge_s(layout)
    fleet_sd = math.sqrt(layout.per_step) * _deviation(layout.completion) / layout.writing
    judge_sd = math.sqrt(layout.prompts * layout.verdicts) * _deviation(layout.verdict) / layout.judging
    last_pass = layout.reference_s * math.ceil(layout.completions / layout.ranks)
    passes = max(0.0, passes_s(layout) - (layout.push_s if layout.push_beside else 0.0))
    left, drawn_out = layout.step_s, 0.0
    if layout.early:
        left *= min(1.0, (layout.early + 1) / 2 / layout.prompts)
        late = 1.0 - share_whole(layout)[1]
        ends_at = times + (layout.step_s + passes_s(layout)) * late
        drawn_out = float(ends_at[late * layout.prompts >= layout.early + 1].max(initial=0.0))
    quantiles = np.interp([(i + 0.5) / BATCHES for i in range(BATCHES)], cdf, times).tolist()
    random.shuffle(quantiles)  # stratified: the mean of L is exact, only the order is drawn
    live: deque[float] = deque([0.0] * (lag + 1), maxlen=lag + 1)
    begun = judging = -math.inf
    ends = []
    for whole in quantiles:
        begun = max(live[0], begun + random.gauss(fleet, fleet_sd))
        judging = max(begun, judging + random.gauss(judge, judge_sd))
        ready, free = judging + whole + last_pass, live[-1] + passes
        end = max(free + layout.step_s, judging + drawn_out, ready + left) + layout.push_s
        live.append(end)
        ends.append(end)
    steps = [later - earlier for earlier, later in pairwise(ends[WARM:])]
    return sum(steps) / len(steps)


def _deviation(duration: Duration) -> float:
    return math.sqrt(max(0.0, duration.second_moment - duration.mean**2))


def latency_s(layout: Layout) -> float:
    """Mean seconds that a group holds its place where no server is ever busy: (max_lag + 1) steps."""
    endless = replace(layout, replica_slots=UNLIMITED, genrm_slots=UNLIMITED)
    return (layout.max_lag + 1) * expected_step_s(endless)


def capacities(layout: Layout) -> dict[str, float]:
    """Episodes an hour that each part allows by itself; see the top."""
    num = layout.per_step
    return {
        "fleet": HOUR_S * num / fleet_s(layout),
        "judge": HOUR_S * num / judge_s(layout),
        "learner": HOUR_S * num / learner_s(layout),
        "in flight": HOUR_S * (layout.max_lag + 1) * num / latency_s(layout),
    }


def expected_episodes(layout: Layout) -> float:
    """Episodes an hour to expect of all parts together."""
    return HOUR_S * layout.per_step / expected_step_s(layout)
