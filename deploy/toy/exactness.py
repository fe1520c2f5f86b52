"""How often a toy judge's greedy verdict is the one that it was taught."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from deploy.toy.generation import complete
from deploy.toy.judge import render
from deploy.toy.world import Conversation, judge_text

Case = tuple[Conversation, Sequence[str]]

LONGEST_VERDICT = 192
"""Tokens; two answers of 16 words need about 145."""


@dataclass(frozen=True)
class Exactness:
    """Shares of cases, 0..1: both scores right, ranking right too, no readable scores."""

    cases: int
    scores: float
    ranking: float
    unreadable: float

    def __str__(self) -> str:
        return (
            f"scores exact {self.scores:.1%}, ranking too {self.ranking:.1%}, "
            f"unreadable {self.unreadable:.1%} of {self.cases}"
        )


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, cases: Sequence[Case], liked: str | None = None
) -> Exactness:
    """Let the judge write on every case and compare its boxes with the perfect judge's, or with those of one that
    likes a word too well."""
    prompts = [render(tokenizer, conversation, responses) for conversation, responses in cases]
    texts = complete(model, tokenizer, prompts, max_new_tokens=LONGEST_VERDICT, sample=False)
    said = [boxes(text) for text in texts]
    truth = [boxes(judge_text(conversation, responses, liked)) for conversation, responses in cases]
    pairs = list(zip(said, truth, strict=True))
    return Exactness(
        cases=len(pairs),
        scores=sum(s[:1] == t[:1] for s, t in pairs) / len(pairs),
        ranking=sum(s == t for s, t in pairs) / len(pairs),
        unreadable=sum(len(s) != len(t) or s[0].count(",") != t[0].count(",") for s, t in pairs) / len(pairs),
    )


def boxes(text: str) -> list[str]:
    """What stands in the boxes after the reasoning: the scores, then the ranking. Example: `["3, 2", "3"]`."""
    return re.findall(r"\\boxed\{([^}]*)\}", text.rpartition("</think>")[2])
