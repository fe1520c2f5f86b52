"""Whether learner and replicas are the same policy: the gap between their log-probs of the sampled tokens.

gap = learner's log-prob - replica's, in nats, for each token. Two engines that hold the same weights differ by their
roundings (in bf16, a standard deviation of about 0.05 is usual); a wrong template, temperature, weight or kernel shows
as a gap long before it shows in the scores. Lag is another matter: where the learner has taken a step since the replica
wrote, the gap has the step's own change in it, which can exceed every rounding. So only *fresh* tokens are looked at,
those that were written by the very weights the learner held when it measured, in its no-grad pass. The first batch is
fresh as a whole, since no step was taken yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.group import Group
from trainer.stats import Moments
from wire.errors import ServiceError
from wire.generation import Completion, PolicyVersion

ENOUGH_TOKENS = 256  # fresh tokens of a step that give a standard deviation to within about 5 %
PATIENCE = 3  # steps in a row above the limit, of those that have enough

CAUSES = (
    "usual causes: the replica's chat template or tokenizer is not the learner's; another sampling temperature or a "
    "logits processor; weights that were not pushed or not pushed whole; another dtype (rollout_dtype, bf16, "
    "fp32_lm_head); an attention or matmul kernel that rounds differently"
)


def measure_gap(
    completions: Sequence[Completion], own_K: Sequence[Sequence[float]], held: PolicyVersion | None
) -> Moments:
    """The gap of a group's fresh tokens.

    Args:
        completions: with the replica's log-probs and the versions that wrote them.
        own_K: the learner's log-probs of each.
        held: the version the learner held when it measured; None where that is not known, and nothing counts as fresh.
    """
    fresh = [
        np.subtract(own[span.start : span.end], completion.logprobs[span.start : span.end])
        for completion, own in zip(completions, own_K, strict=True)
        for span in completion.versions
        if held is not None and span.version == held.label
    ]
    return Moments.of(np.concatenate(fresh) if fresh else ())


def step_gap(groups: Sequence[Group]) -> Moments:
    """The gap of a step's fresh tokens."""
    return sum((group.gap for group in groups), Moments())


class NumericsGate:
    """Ends a run whose learner and replicas are not the same policy.

    Args:
        max_first: largest standard deviation of the first batch's gap, in nats.
        max_later: the same for later batches, of which `PATIENCE` in a row above it end the run; one with too few
            fresh tokens to tell is passed over.
    """

    def __init__(self, max_first: float, max_later: float) -> None:
        self._max_first, self._max_later = max_first, max_later
        self._is_first = True
        self._num_above = 0

    def check(self, groups: Sequence[Group], version: PolicyVersion) -> None:
        """Look at a step's groups before `version` is trained on them.

        Raises:
            ServiceError: the first batch is above its limit, or this one is the last of `PATIENCE` above theirs.
        """
        gap = step_gap(groups)
        first, self._is_first = self._is_first, False
        if gap.count < (1 if first else ENOUGH_TOKENS):
            return
        if first:
            if not gap.std <= self._max_first:  # NaN too
                raise ServiceError(self._message(gap, version, "before the first step", "max_first_logp_gap"))
            return
        self._num_above = 0 if gap.std <= self._max_later else self._num_above + 1
        if self._num_above >= PATIENCE:
            raise ServiceError(self._message(gap, version, f"for {PATIENCE} steps in a row", "max_logp_gap"))

    def _message(self, gap: Moments, version: PolicyVersion, when: str, limit: str) -> str:
        bound = self._max_first if limit == "max_first_logp_gap" else self._max_later
        return (
            f"learner and replicas disagree {when}: at version {version.label} the gap between their log-probs has a "
            f"standard deviation of {gap.std:.3f} nats over {gap.count} tokens (mean {gap.mean:+.3f}), above {limit} "
            f"({bound:g}); {CAUSES}"
        )
