"""What of a completion is judged: the answer, without the policy's reasoning."""

from __future__ import annotations

THOUGHT_BEGIN, THOUGHT_END = "<think>", "</think>"


def answer_of(completion: str) -> str:
    """The text after the last `</think>`, stripped."""
    return completion.rpartition(THOUGHT_END)[2].strip()


def judged_answer(completion: str | None) -> str | None:
    """The answer to judge, or None where there is none: no text, an empty answer, or a thought that never closed.

    A template that opens the thought in the prompt leaves no `<think>` in the completion; whoever uses one passes None
    for a thought that was cut.
    """
    answer = answer_of(completion or "")
    return None if not answer or THOUGHT_BEGIN in answer else answer
