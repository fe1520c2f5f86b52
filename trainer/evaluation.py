"""What came of one evaluation: the live policy's answers beside the initial policy's, and what the judges said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from trainer.comparison import UNKNOWN, Compared
from trainer.initial_answers import Answer
from trainer.win_rate import length_controlled_win_rate, paired_interval, score_interval, wilson_interval, win_rate
from wire.generation import PolicyVersion


@dataclass(frozen=True)
class Row:
    """One prompt's part of an evaluation; what could not be had is None. `second` is the second judge's word; `truth`
    and `initial_truth` are the true scores of the two answers, where they are known."""

    answer: Answer | None = None
    initial: Answer | None = None
    compared: Compared = UNKNOWN
    second: Compared = UNKNOWN
    truth: float | None = None
    initial_truth: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What came of one evaluation.

    Rates and shares are 0..1, scores 1..5, lengths in tokens; None where no prompt gave any. `step` is the policy's
    when it began, `oldest_version` and `newest_version` wrote the answers. `missing` is the share of prompts without an
    outcome: no answer, or no verdict in either order. They take no part in the win rates. `margin` is by how many
    points of score the answers are above the initial ones.

    `judge_gap` is how much more often the judge prefers the answers than the second one does, `score_gap` how much
    wider its margin is, each over the prompts on which both have a word; `_low` and `_high` are the ends of their 95 %
    confidence intervals, as those of `win_rate`.
    """

    step: int
    num_prompts: int
    oldest_version: str | None
    newest_version: str | None
    win_rate: float | None
    win_rate_low: float | None
    win_rate_high: float | None
    length_controlled_win_rate: float | None
    score: float | None
    margin: float | None
    length: float | None
    initial_length: float | None
    truncated: float | None
    missing: float
    second_win_rate: float | None
    second_score: float | None
    second_margin: float | None
    judge_gap: float | None
    judge_gap_low: float | None
    judge_gap_high: float | None
    score_gap: float | None
    score_gap_low: float | None
    score_gap_high: float | None
    truth: float | None
    initial_truth: float | None

    @classmethod
    def of(cls, step: int, rows: Sequence[Row]) -> Evaluation:
        """The sums of its rows."""
        decided = [
            (row.compared.outcome, row.answer.num_tokens - row.initial.num_tokens)
            for row in rows
            if row.answer is not None and row.initial is not None and row.compared.outcome is not None
        ]
        outcomes = [outcome for outcome, _ in decided]
        rate = win_rate(outcomes) if outcomes else None
        low, high = (None, None) if rate is None else wilson_interval(rate, len(outcomes))
        controlled = length_controlled_win_rate(outcomes, [longer for _, longer in decided]) if decided else None
        answers = [row.answer for row in rows if row.answer is not None]
        versions = sorted(PolicyVersion.parse(label) for answer in answers for label in (answer.oldest, answer.newest))
        gaps = _differences((row.compared.outcome, row.second.outcome) for row in rows)
        gap_low, gap_high = paired_interval(gaps) if gaps else (None, None)
        score_gaps = _differences((row.compared.margin, row.second.margin) for row in rows)
        score_gap_low, score_gap_high = score_interval(score_gaps) if score_gaps else (None, None)
        return cls(
            step=step,
            num_prompts=len(rows),
            oldest_version=versions[0].label if versions else None,
            newest_version=versions[-1].label if versions else None,
            win_rate=rate,
            win_rate_low=low,
            win_rate_high=high,
            length_controlled_win_rate=controlled,
            score=_mean(row.compared.score for row in rows),
            margin=_mean(row.compared.margin for row in rows),
            length=_mean(answer.num_tokens for answer in answers),
            initial_length=_mean(row.initial.num_tokens for row in rows if row.initial is not None),
            truncated=_mean(not answer.finished for answer in answers),
            missing=1 - len(outcomes) / len(rows),
            second_win_rate=_mean(row.second.outcome for row in rows),
            second_score=_mean(row.second.score for row in rows),
            second_margin=_mean(row.second.margin for row in rows),
            judge_gap=_mean(gaps),
            judge_gap_low=gap_low,
            judge_gap_high=gap_high,
            score_gap=_mean(score_gaps),
            score_gap_low=score_gap_low,
            score_gap_high=score_gap_high,
            truth=_mean(row.truth for row in rows),
            initial_truth=_mean(row.initial_truth for row in rows),
        )

    def metrics(self) -> dict[str, float]:
        """By the names of TensorBoard; what is not known is not there."""
        found: dict[str, float | None] = {
            "eval/step": self.step,
            "eval/win_rate": self.win_rate,
            "eval/win_rate_low": self.win_rate_low,
            "eval/win_rate_high": self.win_rate_high,
            "eval/length_controlled_win_rate": self.length_controlled_win_rate,
            "eval/score": self.score,
            "eval/margin": self.margin,
            "eval/length": self.length,
            "eval/truncated": self.truncated,
            "eval/missing": self.missing,
            "eval/second_win_rate": self.second_win_rate,
            "eval/second_score": self.second_score,
            "eval/second_margin": self.second_margin,
            "eval/judge_gap": self.judge_gap,
            "eval/judge_gap_low": self.judge_gap_low,
            "eval/judge_gap_high": self.judge_gap_high,
            "eval/score_gap": self.score_gap,
            "eval/score_gap_low": self.score_gap_low,
            "eval/score_gap_high": self.score_gap_high,
            "eval/truth": self.truth,
        }
        return {name: float(value) for name, value in found.items() if value is not None}


def _differences(pairs: Iterable[tuple[float | None, float | None]]) -> list[float]:
    return [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return fmean(known) if known else None
