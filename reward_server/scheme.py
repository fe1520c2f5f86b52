"""How a group is judged: who is compared with whom, how often, and how scores come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reward_server.aggregate import AGGREGATIONS, TIE_BREAK, Scores
from reward_server.config import RewardSettings
from reward_server.pairings import Pairing, pairing_named
from wire.judgement import PlacedVerdict


@dataclass(frozen=True)
class Scheme:
    """`votes` verdicts of each pair; `tie_break` points for a step of the ranking where two scores are equal."""

    pairing: Pairing
    aggregation: str = "mean"
    votes: int = 1
    tie_break: float = TIE_BREAK

    @classmethod
    def of(cls, settings: RewardSettings) -> Scheme:
        """What the settings say. Votes share the group's budget of judge calls."""
        pairing = pairing_named(settings.judge_pairing, calls=settings.judge_calls_per_group // settings.judge_votes)
        return cls(pairing, settings.judge_aggregation, settings.judge_votes, settings.tie_break)

    def scores(self, num: int, placed: Sequence[PlacedVerdict]) -> Scores:
        """The score of each of `num` completions that was compared."""
        return AGGREGATIONS[self.aggregation](num, placed, tie_break=self.tie_break)
