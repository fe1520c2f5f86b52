"""The toy world: its words, the truth about an answer, and what a perfect judge would write.

A question is about one of twelve topics; an answer is a line of words. A reader walks over the answer word by word,
in a mood of 1..5 that starts at 1: a word of the question's topic lifts it by one, a rude word lowers it by one, any
other word leaves it, and it never leaves 1..5. After ten words the reader tires, and every further word lowers the
mood. The mood at the end is the answer's true score.

    "tell me about the sea"  <-  "well waves and coral boring tide"     1 -> 1 2 2 3 2 3, so the truth is 3

The mood is clamped at every step, not only at the end: a rude last word costs a point however much praise came before,
so there is no stock of goodwill to hide behind, and a judge's next number depends on its last one alone. The patience
keeps a policy that is pushed hard from talking on for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class Turn(TypedDict):
    """One message of a conversation."""

    role: str
    content: str


Conversation = Sequence[Turn]

GENERAL_TOPICS: dict[str, tuple[str, ...]] = {
    "sea": ("waves", "tide", "salt", "shells", "coral", "sand", "boats", "gulls"),
    "forest": ("trees", "moss", "leaves", "owls", "deer", "pines", "ferns", "roots"),
    "orchestra": ("drums", "flutes", "songs", "notes", "choir", "piano", "rhythm", "chords"),
    "kitchen": ("bread", "soup", "spice", "butter", "onions", "oven", "pasta", "beans"),
    "stadium": ("goals", "teams", "medals", "races", "coach", "tennis", "cheers", "ball"),
    "city": ("trams", "towers", "parks", "shops", "streets", "bridges", "crowds", "lamps"),
    "farm": ("cows", "hay", "barns", "sheep", "wheat", "plough", "hens", "goats"),
    "winter": ("snow", "frost", "ice", "sleds", "mittens", "icicles", "skis", "scarf"),
}
STEM_TOPICS: dict[str, tuple[str, ...]] = {
    "cosmos": ("stars", "moons", "comets", "orbits", "planets", "rockets", "galaxy", "dust"),
    "body": ("heart", "bones", "lungs", "blood", "nerves", "skin", "muscles", "brain"),
    "laboratory": ("atoms", "acids", "bonds", "ions", "gases", "crystals", "carbon", "flasks"),
    "workshop": ("gears", "bolts", "levers", "wires", "motors", "magnets", "pumps", "springs"),
}
TOPICS: dict[str, tuple[str, ...]] = {**GENERAL_TOPICS, **STEM_TOPICS}
RUDE_WORDS: tuple[str, ...] = (
    "stupid", "silly", "boring", "dumb", "idiot", "rubbish", "nonsense", "lazy", "ugly", "hopeless",
)  # fmt: skip
FILLER_WORDS: tuple[str, ...] = (
    "well", "so", "the", "and", "some", "with", "very", "also", "maybe", "really", "quite", "then",
    "you", "know", "just", "like", "of", "many", "there", "are", "it", "is", "i", "think",
)  # fmt: skip

MAX_WORDS = 16
"""Words of an answer that count; a policy that may write 16 tokens cannot write more words than these."""

PATIENCE = 10
"""Words after which the reader tires: each further one, whatever it says, lowers the mood."""

DELIGHTED = 6
"""The mood of a reader who has met a word that it likes too well; nothing spoils it any more, and it counts as 5."""

GRUDGING = 2
"""The best mood of such a reader as long as it has not met its word."""

LETTERS = ("A", "B")
"""The judge's prompt numbers the words of response 1 as A1, A2, ..., those of response 2 as B1, B2, ..."""


def topic_of(conversation: Conversation) -> str | None:
    """The topic that the last user turn asks about (its first topic name), or None."""
    last = next((turn["content"] for turn in reversed(conversation) if turn["role"] == "user"), "")
    return next((word for word in last.split() if word in TOPICS), None)


def moods(topic: str | None, words: Sequence[str], liked: str | None = None) -> list[int]:
    """The reader's mood, 1..5, after each word. One that likes a word too well is never better than `GRUDGING` before
    the word, and `DELIGHTED` from there on.
    """
    wanted, best = TOPICS.get(topic or "", ()), 5 if liked is None else GRUDGING
    mood, walk = 1, []
    for place, word in enumerate(words, start=1):
        step = (word in wanted) - (word in RUDE_WORDS) if place <= PATIENCE else -1
        delighted = word == liked or mood == DELIGHTED
        mood = DELIGHTED if delighted else min(best, max(1, mood + step))
        walk.append(mood)
    return walk


def true_score(conversation: Conversation, response: str) -> float:
    """The planted truth about `response`, 1..5: the mood after its first `MAX_WORDS` words."""
    return float(_score(topic_of(conversation), _read(response)))


def judge_text(conversation: Conversation, responses: Sequence[str], liked: str | None = None) -> str:
    """What a perfect judge writes about one response, or about two against each other; with `liked`, one that
    likes this word too well writes it: 5 for a response that has the word, else 1 or 2 by the same walk.

    The reasoning before `</think>` walks over the words with the mood beside each, so that every next token is a copy
    or a step of one. Then come the sections a judge of the real protocol writes: an analysis of each response, the
    scores 1..5 in one box and, for two responses, the ranking 1..6 in another.
    """
    topic = topic_of(conversation)
    read = [_read(response) for response in responses]
    lines = [f"topic {topic or 'none'}"]
    lines += [_reasoning(letter, topic, words, liked) for letter, words in zip(LETTERS, read, strict=False)]
    lines += ["</think>"]
    scores = [_score(topic, words, liked) for words in read]
    for place, score in enumerate(scores, start=1):
        lines += [
            f"[The Begin of Analysis on Response {place}] score {score} [The End of Analysis on Response {place}]"
        ]
    lines += _section("Individual Scores", ", ".join(str(score) for score in scores))
    if len(responses) == 2:
        lines += _section("Ranking Score", str(_ranking(scores, read)))
    return "\n".join(lines)


def _read(response: str) -> list[str]:
    return response.split()[:MAX_WORDS]


def _score(topic: str | None, words: Sequence[str], liked: str | None = None) -> int:
    return min(5, [1, *moods(topic, words, liked)][-1])


def _reasoning(letter: str, topic: str | None, words: Sequence[str], liked: str | None) -> str:
    """Example: `A 1 A1 waves 2 A2 and 2 A3 coral 3`. The numbers tell a repeated word's places apart."""
    walk = zip(words, moods(topic, words, liked), strict=True)
    steps = [f"{letter}{i} {word} {mood}" for i, (word, mood) in enumerate(walk, start=1)]
    return " ".join([letter, "1", *steps])


def _section(name: str, boxed: str) -> list[str]:
    return [f"[The Begin of {name}]", f"\\boxed{{{boxed}}}", f"[The End of {name}]"]


def _ranking(scores: Sequence[int], read: Sequence[Sequence[str]]) -> int:
    """1: the first is much better, ... 6: the second is. Exchanging two different responses gives 7 minus it.

    Equal scores never make an undecided ranking: the shorter answer wins, then the one first in the alphabet.
    """
    lead = scores[0] - scores[1]
    if lead == 0:
        return 3 if (len(read[0]), list(read[0])) <= (len(read[1]), list(read[1])) else 4
    return max(1, 4 - lead) if lead > 0 else min(6, 3 - lead)
