"""A judge whose errors are known: what it thinks of responses of given qualities, and what becomes of that."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from wire.judgement import Verdict


@dataclass(frozen=True)
class NoisyJudge:
    """A judge that errs, all in points: `noise` and `mood` are standard deviations, `bias` its liking for place 1."""

    noise: float = 0.5
    mood: float = 0.5
    bias: float = 0.5

    def verdict(self, first: float, second: float | None, rng: random.Random) -> Verdict:
        """What it says of two responses of these qualities, or of one alone, which has no place to be liked for."""
        mood = rng.gauss(0, self.mood)
        if second is None:
            return Verdict(scores=(_on_scale(round(first + mood + rng.gauss(0, self.noise)), 5),))
        seen = (first + mood + self.bias + rng.gauss(0, self.noise), second + mood + rng.gauss(0, self.noise))
        ranking = math.floor(4 - (seen[0] - seen[1]))  # 3 is a lead of the first by up to a point, 4 of the second
        return Verdict(scores=tuple(_on_scale(round(s), 5) for s in seen), ranking=_on_scale(ranking, 6))


def _on_scale(value: int, highest: int) -> int:
    return min(highest, max(1, value))
