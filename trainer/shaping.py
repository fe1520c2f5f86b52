"""Terms that a completion's length adds to its score. All of them are off by default.

A judge that likes long answers makes a policy long-winded. Two remedies, each with a weight in points of the score:

- group-relative length control (Nemotron 3 Nano, arXiv 2512.20848): the shortest of a group's answers gains and the
  longest loses, and likewise the thoughts; the gains of a group sum to 0;
- soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13): 0 up to `max_len - cache` tokens, falling to minus the
  weight at `max_len`; TRL's own function.

K stands for the completions of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

from trl.rewards import get_soft_overlong_punishment  # type: ignore[attr-defined]  # exported lazily

from reward_server.answers import THOUGHT_BEGIN, THOUGHT_END, answer_of
from trainer.config import RunSettings


def characters_of(text: str) -> tuple[int, int]:
    """(answer, thought) of a completion in characters."""
    return len(answer_of(text)), len(thought_of(text))


def has_length_terms(settings: RunSettings) -> bool:
    """Whether any of the terms is on."""
    return any((settings.answer_length_weight, settings.thought_length_weight, settings.overlong_weight))


def group_length_terms(
    characters_K: Sequence[tuple[int, int]],
    num_tokens_K: Sequence[int],
    judged_K: Sequence[bool],
    settings: RunSettings,
) -> list[float]:
    """`length_terms` with the settings' weights."""
    overlong = (settings.response_length, settings.overlong_cache, settings.overlong_weight)
    return length_terms(
        characters_K,
        num_tokens_K,
        judged_K,
        answer_weight=settings.answer_length_weight,
        thought_weight=settings.thought_length_weight,
        overlong=overlong if settings.overlong_weight else None,
    )


def length_terms(
    characters_K: Sequence[tuple[int, int]],
    num_tokens_K: Sequence[int],
    judged_K: Sequence[bool],
    *,
    answer_weight: float = 0.0,
    thought_weight: float = 0.0,
    overlong: tuple[int, int, float] | None = None,
) -> list[float]:
    """What is to be added to each completion's score.

    Group-relative control is over the completions that the judge was shown and gave a score. Of the others, one without
    a score takes no part in the advantages, and as it is mostly the longest that go missing, its length would stretch
    the scale on which the rest are told apart; one that gave the judge nothing to judge must not pass for the briefest.
    Neither gets a term, which is to stand at the group's mean. Overlong punishment knows no group: everybody gets it.

    Args:
        characters_K: of each completion's answer and thought, see `characters_of`.
        num_tokens_K: their lengths in tokens.
        judged_K: whether a completion was shown to the judge and has a score.
        answer_weight: points between the shortest and the longest answer, by characters.
        thought_weight: the same for thoughts.
        overlong: (max_len in tokens, cache in tokens, weight in points), or None for none.
    """
    terms = [0.0] * len(characters_K)
    if overlong is not None:
        max_len, cache, weight = overlong
        # TRL looks at nothing but the number of tokens.
        punishments = get_soft_overlong_punishment(max_len, cache)([range(num) for num in num_tokens_K])
        terms = [weight * punishment for punishment in punishments]
    judged = [k for k, counts in enumerate(judged_K) if counts]
    for part, weight in enumerate((answer_weight, thought_weight)):
        brevity = relative_brevity([characters_K[k][part] for k in judged])
        for k, gain in zip(judged, brevity, strict=True):
            terms[k] += weight * gain
    return terms


def relative_brevity(lengths: Sequence[int]) -> list[float]:
    """w_i less the mean of w, where w_i = 1 - (l_i - l_min) / (l_max - l_min); all 0 where the lengths are equal."""
    if not lengths or min(lengths) == max(lengths):
        return [0.0] * len(lengths)
    shortest, longest = min(lengths), max(lengths)
    brevity = [1 - (length - shortest) / (longest - shortest) for length in lengths]
    mean = sum(brevity) / len(brevity)
    return [value - mean for value in brevity]


def thought_of(completion: str) -> str:
    """The text before the last `</think>`, stripped and without its `<think>`; empty where no thought was closed."""
    return completion.rpartition(THOUGHT_END)[0].strip().removeprefix(THOUGHT_BEGIN).strip()


def flipped_share(with_terms_K: Sequence[float | None], without_terms_K: Sequence[float | None]) -> tuple[int, int]:
    """(advantages whose sign the terms turn, advantages there are): how far length overrules the judge.

    An advantage of 0 has no sign to turn.
    """
    both = [
        (shaped, plain)
        for shaped, plain in zip(with_terms_K, without_terms_K, strict=True)
        if shaped is not None and plain is not None
    ]
    return sum(shaped * plain < 0 for shaped, plain in both), len(both)
