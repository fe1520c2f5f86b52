"""The maths of RLOO: one page.

Symbols: K completions of a prompt; T tokens of a packed micro-batch (completion tokens only, prompts have no gradient);
N completions in it; `segment_T[t]` is the completion that token t belongs to.

Source of the estimator: Ahmadian et al., "Back to Basics", arXiv 2402.14740, eq. 8:

    g = 1/K sum_i [ R_i - 1/(K-1) sum_{j != i} R_j ] grad log pi(y_i | x),    R_i = r_i - beta log(pi/pi_ref)(y_i | x)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def leave_one_out(rewards_K: Sequence[float | None]) -> list[float | None]:
    """Advantage of each completion over the mean of the *others that have a reward*.

    Over the n rewards there are: A_i = R_i - (sum - R_i) / (n - 1) = n / (n - 1) x (R_i - mean). They sum to 0. A
    completion without a reward has no advantage, and neither has anyone where fewer than two rewards are known.
    """
    known = [reward for reward in rewards_K if reward is not None]
    if len(known) < 2:
        return [None] * len(rewards_K)
    total = sum(known)
    return [None if reward is None else reward - (total - reward) / (len(known) - 1) for reward in rewards_K]


def assemble_reward(
    score: float, *, finished: bool, kl: float, kl_coef: float, missing_eos_penalty: float | None
) -> tuple[float, float]:
    """(score after the missing-EOS penalty, reward = that score - kl_coef x kl).

    Args:
        score: the judge's, 1..5.
        finished: whether the completion ended by itself.
        kl: sum over its tokens of log pi - log pi_ref (the k1 estimator), in nats.
        kl_coef: beta.
        missing_eos_penalty: subtracted from the score of a completion that was cut; None for none.
    """
    penalised = score if finished or missing_eos_penalty is None else score - missing_eos_penalty
    return penalised, penalised - kl_coef * kl


def normalise(values: Sequence[float]) -> list[float]:
    """(value - mean) / (std + 1e-8), std with n - 1 below it, as TRL's RLOOTrainer has it. At least two values."""
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return [(value - mean) / (std + 1e-8) for value in values]


@dataclass
class ImportanceWeights:
    """One entry a token, detached. `capped_T`: whether the weight was truncated."""

    weight_T: Tensor
    capped_T: Tensor


def importance_weights(
    old_T: Tensor, sampled_T: Tensor, segment_T: Tensor, *, kind: str, cap: float
) -> ImportanceWeights:
    """pi_old / mu, truncated at `cap`: corrects for lag and for the engine's numerics.

    The weight multiplies a gradient and carries none itself: the cap acts on a detached number, so a capped token still
    learns.

    Args:
        old_T: log-probs under the policy at the start of the step.
        sampled_T: log-probs under mu, what the replica sampled from.
        segment_T: completion of each token.
        kind: `token`, a token's own ratio: biased, of small variance; `sequence`, the product of the ratios of the
            completion's tokens, the same for each of them: unbiased but for the cap, of large variance; `none`: 1.
        cap: largest weight.
    """
    log_ratio_T = (old_T - sampled_T).detach()
    if kind == "none":
        log_ratio_T = torch.zeros_like(log_ratio_T)
    elif kind == "sequence" and log_ratio_T.numel():
        log_ratio_N = log_ratio_T.new_zeros(int(segment_T.max()) + 1).index_add(0, segment_T, log_ratio_T)
        log_ratio_T = log_ratio_N[segment_T]
    ratio_T = log_ratio_T.exp()
    return ImportanceWeights(ratio_T.clamp(max=cap), ratio_T > cap)


@dataclass
class PolicyLoss:
    """`loss` is a scalar to differentiate; the rest are detached, one entry a completion (N)."""

    loss: Tensor
    ratio_N: Tensor
    log_ratio_N: Tensor
    clipped_N: Tensor


def policy_loss(
    new_T: Tensor,
    old_T: Tensor,
    weight_T: Tensor,
    segment_T: Tensor,
    advantage_N: Tensor,
    *,
    denominator: int,
    cliprange: float,
) -> PolicyLoss:
    """Clipped sequence-level policy loss, summed over the micro-batch and divided by the step's completions.

    A completion's ratio is r = exp(sum_t (new_t - old_t)), and the weight of a token scales that token's part of the
    gradient: grad r = r sum_t w_t grad log pi_t. While new = old, r is 1 and this is exactly the truncated-importance
    RLOO estimator. When a batch is reused the ratio moves and is clipped to 1 +- cliprange as in PPO: the clip bounds
    pi / pi_old, whatever mu was (Hilton et al., arXiv 2110.00641, the decoupled objective).

    Args:
        new_T: log-probs under the policy being trained; carry the gradient.
        old_T: log-probs under the policy at the start of the step.
        weight_T: importance weights, detached.
        segment_T: completion of each token, 0..N-1.
        advantage_N: advantages.
        denominator: completions with an advantage in the optimizer step, over all ranks and micro-batches - not N.
        cliprange: epsilon.
    """
    zeros = torch.zeros_like(advantage_N)
    moved_T = new_T.detach() - old_T
    # The second term is zero and brings the weighted gradient: a weight inside the ratio would move the clip's bounds.
    log_ratio_N = zeros.index_add(0, segment_T, moved_T + weight_T * (new_T - new_T.detach()))
    ratio_N = log_ratio_N.exp()
    plain_N = -advantage_N * ratio_N
    clipped_N = -advantage_N * ratio_N.clamp(1 - cliprange, 1 + cliprange)
    loss = torch.maximum(plain_N, clipped_N).sum() / denominator
    return PolicyLoss(loss, ratio_N.detach(), log_ratio_N.detach(), (clipped_N > plain_N).detach())
