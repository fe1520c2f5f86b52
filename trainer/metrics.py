"""The numbers of a step under the names users know. Sources: TRL's RLOOTrainer, its traps avoided (no padding counted).

All `objective/*` means run over the completions that have a score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from trainer.group import Group
from trainer.numerics import step_gap
from trainer.shaping import flipped_share
from trainer.stats import Moments, StepStats


def _mean(values: Sequence[float]) -> float:
    return Moments.of(values).mean


def step_metrics(
    groups: Sequence[Group],
    stats: StepStats,
    *,
    kl_coef: float,
    lags: Sequence[int],
    episode: int,
    eps: float,
    stop_token_ids: Sequence[int],
) -> dict[str, float]:
    """Every scalar of one step, by its TensorBoard name.

    Args:
        groups: the groups trained on.
        stats: of the learner, over all ranks.
        kl_coef: beta.
        lags: of each group, in steps.
        episode: completions trained on so far.
        eps: completions a second since the start.
        stop_token_ids: ids that end a completion.
    """
    scored = [
        (score, reward, kl, entropy)
        for group in groups
        for score, reward, kl, entropy in zip(group.scores_K, group.rewards_K, group.kl_K, group.entropy_K, strict=True)
        if score is not None and reward is not None
    ]
    completions = [completion for group in groups for completion in group.completions]
    errors = [error for group in groups for error in group.verdict.standard_errors or () if error is not None]
    flipped = [flipped_share(group.advantages_K, group.plain_advantages_K) for group in groups]
    stops = set(stop_token_ids)
    num_flat = sum(not group.has_signal for group in groups)
    return {
        "objective/kl": _mean([kl for _, _, kl, _ in scored]),
        "objective/entropy": _mean([entropy for *_, entropy in scored]),
        "objective/non_score_reward": _mean([-kl_coef * kl for _, _, kl, _ in scored]),
        "objective/rlhf_reward": _mean([reward for _, reward, _, _ in scored]),
        "objective/scores": _mean([score for score, *_ in scored]),
        "objective/length_term": _mean([abs(term) for group in groups for term in group.length_terms_K]),
        "objective/sign_flips": sum(num for num, _ in flipped) / max(1, sum(total for _, total in flipped)),
        "policy/approxkl_avg": stats.approx_kl.mean,
        "policy/clipfrac_avg": stats.clipped.mean,
        "policy/entropy_avg": stats.entropy.mean,
        "policy/grad_norm": stats.grad_norm,
        "loss/policy_avg": stats.loss,
        "val/ratio": stats.ratio.mean,
        "val/ratio_var": stats.ratio.variance,
        "val/num_eos_tokens": sum(token in stops for c in completions for token in c.token_ids),
        "lr": stats.learning_rate,
        "episode": episode,
        "eps": eps,
        "sampling/logp_diff_mean": stats.logp_diff.mean,
        "sampling/logp_diff_std": stats.logp_diff.std,
        "sampling/logp_diff_max": stats.logp_diff.largest,
        "sampling/ratio_outside_0.9_1.1": stats.ratio_outside.mean,
        "sampling/weight_capped": stats.weight_capped.mean,
        "sampling/ess": stats.weight.effective_share,
        "sampling/gap_std": step_gap(groups).std,
        "sample/lag_mean": _mean(lags),
        "sample/lag_max": max(lags),
        "sample/length_mean": _mean([len(c.token_ids) for c in completions]),
        "sample/truncated": _mean([not c.finished for c in completions]),
        "sample/equal_rewards": num_flat / len(groups),
        "judge/standard_error": _mean(errors),
        **_seconds([group.seconds for group in groups]),
    }


def _seconds(stages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    totals = Counter[str]()
    for stage in stages:
        totals.update(stage)
    return {f"time/{name}": total / len(stages) for name, total in totals.items()}
