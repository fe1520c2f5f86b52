"""The advantages of a step: what needs all of the step's groups, of all learner ranks, at once.

    scores -> normalised, clipped -> rewards (less KL) -> leave one out -> normalised, clipped -> advantages

A completion without a score takes no part anywhere. Neither does one that was cut, under `mask_truncated_completions`:
it has no advantage and stands in nobody's baseline. What is left then is the gradient of E[R | the completion ends by
itself]: with pi_e for the policy given that it ends, grad log pi = grad log pi_e + grad log P(ends), and as the
advantages of those that ended sum to 0, the second part cancels. A cut completion that stayed in the baseline, as in
TRL's trainer, would bring it back: its low score would lift all the others and so reward ending early, which is what
masking is to avoid (to want that is to set `missing_eos_penalty` instead). The denominator of the loss counts
the completions with an advantage, so a masked one does not dilute the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainer.config import RunSettings
from trainer.group import Group
from trainer.rloo import assemble_reward, leave_one_out, normalise
from wire.generation import Completion

Row = Sequence[float | None]  # of one group, an entry a completion


def takes_part(completion: Completion, score: float | None, settings: RunSettings) -> bool:
    """Whether a completion is trained on and counts in the baseline of the others."""
    return score is not None and (completion.finished or not settings.mask_truncated_completions)


def assemble_rewards(
    judged_K: Row, finished_K: Sequence[bool], kl_K: Sequence[float], length_terms_K: Sequence[float],
    settings: RunSettings,
) -> tuple[list[float | None], list[float | None]]:  # fmt: skip
    """(scores after the penalty, rewards) of a group, before the step shapes them; None where the judge's is missing.

    Args:
        judged_K: the judge's scores.
        finished_K: whether the completion ended by itself.
        kl_K: summed over its tokens, in nats.
        length_terms_K: points added for its length.
        settings: the run's.
    """
    scores_K: list[float | None] = []
    rewards_K: list[float | None] = []
    for score, finished, kl, term in zip(judged_K, finished_K, kl_K, length_terms_K, strict=True):
        if score is None:
            scores_K.append(None)
            rewards_K.append(None)
            continue
        penalised, reward = assemble_reward(
            score,
            finished=finished,
            kl=kl,
            kl_coef=settings.kl_coef,
            missing_eos_penalty=settings.missing_eos_penalty,
        )
        scores_K.append(penalised)
        rewards_K.append(reward + term)
    return scores_K, rewards_K


def step_advantages(groups: Sequence[Group], settings: RunSettings) -> list[Group]:
    """The groups of one step with their final rewards and their advantages."""
    groups = _with_shaped_rewards(groups, settings)
    advantages: list[Row] = [
        leave_one_out([r if p else None for r, p in zip(group.rewards_K, _part(group, settings), strict=True)])
        for group in groups
    ]
    advantages = _over_step(advantages, settings.normalize_advantage, settings.advantage_clip_range)
    return [replace(group, advantages_K=row) for group, row in zip(groups, advantages, strict=True)]


def _with_shaped_rewards(groups: Sequence[Group], settings: RunSettings) -> list[Group]:
    """Rewards with the scores normalised and clipped; a cut completion that is masked keeps its own, for the record."""
    scores = [
        [s if p else None for s, p in zip(group.scores_K, _part(group, settings), strict=True)] for group in groups
    ]
    shaped = _over_step(scores, settings.normalize_reward, settings.reward_clip_range)
    return [
        # The reward is the score less the KL, so an exchanged score leaves the KL's part alone.
        replace(group, rewards_K=[_exchanged(*row) for row in zip(group.rewards_K, before, after, strict=True)])
        for group, before, after in zip(groups, scores, shaped, strict=True)
    ]


def _exchanged(reward: float | None, before: float | None, after: float | None) -> float | None:
    return reward if reward is None or before is None or after is None else reward + (after - before)


def _part(group: Group, settings: RunSettings) -> list[bool]:
    return [takes_part(c, score, settings) for c, score in zip(group.completions, group.scores_K, strict=True)]


def _over_step(rows: Sequence[Row], normalised: bool, limit: float | None) -> list[Row]:
    """The known values of all rows, normalised together and clipped to +- `limit`; the unknown stay where they are."""
    known = [value for row in rows for value in row if value is not None]
    if normalised:
        known = normalise(known)
    if limit is not None:
        known = [min(max(value, -limit), limit) for value in known]
    values = iter(known)
    return [[None if value is None else next(values) for value in row] for row in rows]
