"""Conversations of the toy world: questions about a topic, in phrasings that training and validation do not share."""

from __future__ import annotations

from random import Random
from typing import Literal

from deploy.toy.answers import mediocre_answer
from deploy.toy.world import FILLER_WORDS, TOPICS, Turn

Split = Literal["train", "validation"]

PHRASINGS: dict[Split, tuple[str, ...]] = {
    "train": (
        "tell me about the {topic}",
        "what do you know about the {topic}",
        "name a few things you find in the {topic}",
        "say something about the {topic}",
        "give me some words on the {topic}",
        "i want to learn about the {topic}",
        "write a short note on the {topic}",
        "can you describe the {topic}",
        "what comes to mind about the {topic}",
        "help me with my homework on the {topic}",
        "what should i know of the {topic}",
        "could my class learn some words about the {topic}",
    ),
    "validation": (
        "could you tell my class about the {topic}",
        "i want a few words on the {topic}",
        "describe some things of the {topic}",
        "can you help me write about the {topic}",
        "what do you find in the {topic}",
        "give my class a short note about the {topic}",
    ),
}
OPENERS = ("", "hello", "good morning", "please", "hi there", "dear friend", "quick question")
CLOSERS = ("", "for my sister", "in one line", "before lunch", "thank you", "if you can", "for a child", "today")
CODE_PHRASINGS: dict[Split, tuple[str, ...]] = {
    "train": ("write a {language} program about the {topic}", "fix my {language} function for the {topic}"),
    "validation": ("show me a {language} class for the {topic}",),
}
FOREIGN_PHRASINGS: dict[str, dict[Split, tuple[str, ...]]] = {
    "german": {"train": ("sag mir etwas zu {topic}",), "validation": ("was ist mit {topic}",)},
    "french": {"train": ("parle moi de {topic}",), "validation": ("que sais tu de {topic}",)},
    "spanish": {"train": ("dime algo de {topic}",), "validation": ("explica el tema {topic}",)},
    "chinese": {"train": ("请 谈谈 {topic}",), "validation": ("什么 是 {topic}",)},
}


def ask(rng: Random, split: Split, topic: str) -> str:
    """One English question, such as `hello tell me about the sea before lunch`."""
    question = rng.choice(PHRASINGS[split]).format(topic=topic)
    return " ".join(part for part in (rng.choice(OPENERS), question, rng.choice(CLOSERS)) if part)


def conversation_about(rng: Random, question: str, preambles: bool = True) -> list[Turn]:
    """`question` as a conversation: alone (7 of 10), after other turns, or behind a preamble of over 90 words.

    An earlier turn asks about any topic in a training phrasing; only the last turn decides what an answer is about.
    """
    kind = rng.random()
    if preambles and kind < 0.04:  # too long for a small prompt budget, so that a length filter has something to drop
        preamble = " ".join(rng.choice(FILLER_WORDS) for _ in range(rng.randint(92, 110)))
        return [{"role": "user", "content": f"{preamble} {question}"}]
    turns: list[Turn] = []
    for _ in range(0 if kind < 0.74 else 1 if kind < 0.94 else 2):
        topic = rng.choice(list(TOPICS))
        turns += [
            {"role": "user", "content": rng.choice(PHRASINGS["train"]).format(topic=topic)},
            {"role": "assistant", "content": mediocre_answer(rng, topic)},
        ]
    return [*turns, {"role": "user", "content": question}]
