"""A group: one prompt with its K completions, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from trainer.batch import Sample
from trainer.prompts import Prompt
from trainer.rloo import leave_one_out
from trainer.stats import Moments
from wire.generation import Completion, PolicyVersion
from wire.judgement import GroupVerdict


@dataclass(frozen=True)
class Group:
    """All lists have one entry a completion (K).

    `kl_K`: sum over tokens of log pi - log pi_ref; `entropy_K`: sum of -log pi of the sampled tokens (nats, by the
    learner's own log-probs). `scores_K` (after the missing-EOS penalty) and `rewards_K` are None where the judge's
    score is missing. `length_terms_K` are points that the length added to the reward. `seconds` is the wall time of
    each stage: generate, judge (from the last completion on), reference. `gap`: learner's minus replica's log-prob
    (nats) of the tokens that were written by the very weights the learner held when it measured them; these weights
    are `scored_by`, None where a step began meanwhile. `advantages_K` is given when the step is put together
    (`trainer.advantages`); None: not trained on.
    """

    prompt: Prompt
    completions: Sequence[Completion]
    texts: Sequence[str]
    verdict: GroupVerdict
    scores_K: Sequence[float | None]
    rewards_K: Sequence[float | None]
    kl_K: Sequence[float]
    entropy_K: Sequence[float]
    length_terms_K: Sequence[float]
    seconds: Mapping[str, float]
    gap: Moments = field(default_factory=Moments)
    advantages_K: Sequence[float | None] = ()
    scored_by: PolicyVersion | None = None

    @property
    def plain_advantages_K(self) -> list[float | None]:
        """Leave-one-out advantages as they would be without the length terms, of those that have an advantage."""
        rows = zip(self.rewards_K, self.length_terms_K, self.advantages_K, strict=True)
        return leave_one_out([None if r is None or a is None else r - term for r, term, a in rows])

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ: where all are equal every advantage is 0."""
        return len({reward for reward in self.rewards_K if reward is not None}) > 1

    @cached_property
    def versions(self) -> set[PolicyVersion]:
        """All weights that wrote any token of the group."""
        return {PolicyVersion.parse(span.version) for c in self.completions for span in c.versions}

    @property
    def oldest_version(self) -> PolicyVersion:
        """Those of the fewest steps. A lineage and its parent have the same weights at the step of the fork."""
        return min(self.versions, key=lambda version: (version.step, version.lineage))

    def samples(self) -> list[Sample]:
        """What is trained on: the completions with an advantage."""
        return [
            Sample(self.prompt.token_ids, completion.token_ids, completion.logprobs, advantage)
            for completion, advantage in zip(self.completions, self.advantages_K, strict=True)
            if advantage is not None
        ]
