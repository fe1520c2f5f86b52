"""The way from verdicts to advantages, gone once more from the ledger's own numbers with the run's own code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from reward_server.aggregate import LOWEST_SCORE
from reward_server.pairings import drawn_order
from reward_server.scheme import Scheme
from trainer.advantages import assemble_rewards, step_advantages
from trainer.config import RunSettings
from trainer.group import Group
from trainer.prompts import Prompt, hash_seed
from trainer.record import RecordedGroup
from trainer.shaping import group_length_terms
from wire.generation import Completion, logprob_array, token_array
from wire.judgement import GroupVerdict, PlacedVerdict, Verdict

TOLERANCE = 1e-9  # other machines may round otherwise

Row = Sequence[float | None]


def agree(a: float | None, b: float | None, tolerance: float = TOLERANCE) -> bool:
    """Whether two numbers are the same but for rounding; a missing one is like a missing one only."""
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


def wrong_scores(group: RecordedGroup, settings: RunSettings) -> Iterator[str]:
    """Pairs that the scheme does not draw, and scores that do not follow from their verdicts."""
    numbers, num, scheme = group.known, group.num_completions, Scheme.of(settings)
    unjudged, same_as = numbers["unjudged"], numbers["same_as"]
    answers = {k: None if k in unjudged else str(same_as[k]) for k in range(num)}
    order = drawn_order(num, hash_seed(settings.seed, "train", group.occurrence))
    pairs = [[*pair, vote] for pair in scheme.pairing.pairs(order, answers) for vote in range(scheme.votes)]
    if pairs != numbers["pairs"]:
        yield f"{group.name}: the pairs {numbers['pairs']} are not those that its seed draws, {pairs}"
    placed = [
        PlacedVerdict(
            first=first,
            second=second,
            vote=vote,
            verdict=Verdict(scores=scores and tuple(scores), ranking=ranking, missing=missing),
        )
        for (first, second, vote), (scores, ranking, missing) in zip(numbers["pairs"], numbers["judged"], strict=True)
    ]
    found = scheme.scores(num, placed).scores
    expected = [LOWEST_SCORE if k in unjudged else found[same_as[k]] for k in range(num)]
    yield from _differences(group, "verdict_scores", expected, "its verdicts give")


def wrong_rewards(groups: Sequence[RecordedGroup], settings: RunSettings) -> Iterator[str]:
    """Of the groups of one step: length terms, scores, rewards and advantages that do not follow."""
    for group, found in zip(groups, reckoned(groups, settings), strict=True):
        numbers = group.known
        judged = [s is not None and k not in numbers["unjudged"] for k, s in enumerate(numbers["verdict_scores"])]
        characters = list(zip(numbers["answer_chars"], numbers["thought_chars"], strict=True))
        terms = group_length_terms(characters, numbers["num_tokens"], judged, settings)
        yield from _differences(group, "length_terms", terms, "its length gives")
        yield from _differences(group, "scores", found.scores_K, "the judge's score less the penalty is")
        yield from _differences(group, "rewards", found.rewards_K, "score, KL and length give")
        yield from _differences(group, "advantages", found.advantages_K, "the rewards give")


def reckoned(
    groups: Sequence[RecordedGroup], settings: RunSettings, kl: Sequence[Sequence[float]] | None = None
) -> list[Group]:
    """The groups of one step with scores, rewards and advantages reckoned from the judge's scores and the KL.

    Args:
        groups: as they are recorded.
        settings: of the life that made the step.
        kl: of each group, one a completion; the recorded one by default.
    """
    rows = [group.known["kl"] for group in groups] if kl is None else kl
    return step_advantages([_group(g.known, row, settings) for g, row in zip(groups, rows, strict=True)], settings)


def _group(numbers: dict[str, Any], kl_K: Sequence[float], settings: RunSettings) -> Group:
    judged_K: Row = numbers["verdict_scores"]
    scores_K, rewards_K = assemble_rewards(judged_K, numbers["finished"], kl_K, numbers["length_terms"], settings)
    completions = [
        Completion(k, token_array(()), logprob_array(()), finished, ())
        for k, finished in enumerate(numbers["finished"])
    ]
    return Group(
        prompt=Prompt(0, (), ()),
        completions=completions,
        texts=(),
        verdict=GroupVerdict(scores=tuple(judged_K), verdicts=()),
        scores_K=scores_K,
        rewards_K=rewards_K,
        kl_K=kl_K,
        entropy_K=(),
        length_terms_K=numbers["length_terms"],
        seconds={},
    )


def _differences(group: RecordedGroup, field: str, expected: Row, because: str) -> Iterator[str]:
    for k, (now, then) in enumerate(zip(group.known[field], expected, strict=True)):
        if not agree(now, then):
            yield f"{group.name}, completion {k}: {field} is {now}, and {because} {then}"
