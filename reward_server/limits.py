"""What a judge must keep to before a run: the limits, and why they stand where they stand.

With n pairs a share p comes out with a standard error of sqrt(p (1 - p) / n), 0.06 for the default n = 64. So a limit
must stand clear of what a healthy judge shows and clear of what a broken one shows, by two of these or more. By the
binomial distribution, n = 64 (60 of them with a preference), 128 verdicts:

    limit                          a healthy judge is refused          a judge that guesses passes
    agreement      at least 60 %   0.3 % of the time where 75 % agree  8 %: it agrees with half
    flips          at most  40 %   0.4 % where 25 % flip               5 %: half of its pairs flip
    contradictions at most  25 %   below 0.1 % where 10 % contradict   below 0.1 %: half of its verdicts do
    unreadable     at most   5 %   below 0.1 % where 1 % is
    missing        at most  10 %   0.2 % where 4 % are

The limits work together: a guess that is lucky in one is hardly so in the others (agreement and flips alone: 0.4 %).
A judge that is shown the responses in each other's place agrees with few; one that is shown none of the text likes a
place, so every pair flips. More pairs sharpen all of it: of 256 pairs, 65 % and 35 % can be asked in the first lines.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reward_server.agreement import Figures
from reward_server.config import RewardSettings
from reward_server.preferences import DataSettings
from wire.errors import ConfigError

_SHARES = ("max_flips", "max_contradictions", "max_unreadable", "max_missing")


@dataclass
class CheckSettings(RewardSettings, DataSettings):
    """How many pairs the judge is checked on, and how far it may stray."""

    check_pairs: int = field(
        default=64, metadata={"help": "Pairs of eval_split that check the judge, each in both orders."}
    )
    check_min_agreement: float = field(
        default=0.6, metadata={"help": "Least share of pairs on which judge and people agree; a guess gets 0.5."}
    )
    check_max_flips: float = field(
        default=0.4, metadata={"help": "Largest share of pairs whose winner turns with the order; a guess gets 0.5."}
    )
    check_max_contradictions: float = field(
        default=0.25,
        metadata={"help": "Largest share of verdicts whose ranking contradicts their scores; a guess gets 0.5."},
    )
    check_max_unreadable: float = field(
        default=0.05, metadata={"help": "Largest share of verdicts that cannot be read after all retries."}
    )
    check_max_missing: float = field(
        default=0.1, metadata={"help": "Largest share of verdicts that are missing for any reason."}
    )

    def check(self) -> None:
        """Raises ConfigError on values that cannot work."""
        super().check()
        if self.check_pairs < 1:
            raise ConfigError(f"check_pairs ({self.check_pairs}) must be at least 1")
        for name in (f"check_{suffix}" for suffix in _SHARES):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} ({getattr(self, name)}) is a share: give 0 to 1")
        if not self.check_min_agreement >= 0:  # above 1 it refuses every judge, which a rehearsal may want
            raise ConfigError(f"check_min_agreement ({self.check_min_agreement}) must be at least 0")


def faults(settings: CheckSettings, figures: Figures) -> list[str]:
    """What is beyond its limit, the likeliest root first; each with figure, limit and the usual causes."""
    upper = (
        (
            "unreadable",
            figures.unreadable_share,
            f"judge_dialect {settings.judge_dialect!r} is not this judge's, its chat template is another model's, or "
            f"the sampling is too hot (judge_temperature {settings.judge_temperature})",
        ),
        (
            "missing",
            figures.missing_share,
            f"by reason: {figures.reasons}; too_long: raise judge_max_tokens ({settings.judge_max_tokens}) or "
            f"judge_max_model_len ({settings.judge_max_model_len}); timeout: raise judge_timeout_s "
            f"({settings.judge_timeout_s:.0f}) or add servers; refused: the data has roles that the judge lacks",
        ),
        (
            "contradictions",
            figures.contradiction_share,
            "the judge is no GenRM or was quantised too far, or it ranks on another scale than 1 (the first is much "
            "better) to 6",
        ),
        (
            "flips",
            figures.flip_share,
            "the judge decides by place: its template shows it too little of the responses, or it is too small",
        ),
    )
    found = []
    for name, share, causes in upper:
        limit = getattr(settings, f"check_max_{name}")
        if share is not None and share > limit:
            found.append(f"{name} {share:.1%}, and check_max_{name} is {limit:.1%}: {causes}")
    if not figures.num_compared:
        if settings.check_min_agreement > 0:
            found.append("agreement unknown: no pair has both a human preference and a winner of the judge's")
    elif figures.num_right < settings.check_min_agreement * figures.num_compared:
        found.append(
            f"agreement {figures.agreement:.1%} of {figures.num_compared} pairs, and check_min_agreement is "
            f"{settings.check_min_agreement:.1%}: the judge or its chat template is another model's, or the data is of "
            "a kind or language that it does not know; below a half, the responses are in each other's place"
        )
    return found
