"""The ways of judging a group that are compared, and what one group costs in judge tokens.

A *way* says which calls are made and how scores come of their verdicts. Ours are the reward service's own pairings and
aggregations. `PUBLISHED` is what they are held against: the ring of NVIDIA's NeMo Gym (resources_servers/genrm_compare;
Nemotron 3 Nano, arXiv 2512.20848), written here from its description and used nowhere else. `MATCHING` is no way of the
service either: it shows what half the ring's calls are worth.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from benchmarks.planted_judge import NoisyJudge
from reward_server.aggregate import NEUTRAL_RANKING, TIE_BREAK
from reward_server.config import RewardSettings
from reward_server.pairings import Answers, Pairing, drawn_order, pairing_named
from reward_server.scheme import Scheme
from wire.judgement import PlacedVerdict, Verdict

Call = tuple[int, int | None]  # the completions in place 1 and place 2; None: place 1 is judged alone

FILLED = (3.0, 3.0, 3.5)  # what the published ring takes for a verdict that is missing: two scores and the ranking


Scorer = Callable[[int, Sequence[PlacedVerdict]], Sequence[float | None]]


@dataclass(frozen=True)
class Way:
    """`scorer()` starts a run: it makes one score a completion, None where missing, of each group's verdicts."""

    name: str
    pairing: Callable[[int], Pairing]
    scorer: Callable[[], Scorer]
    votes: int = 1

    def calls(self, num: int, rng: random.Random) -> list[Call]:
        """Each call of one group. Every completion has an answer of its own."""
        answers = {k: str(k) for k in range(num)}
        pairs = self.pairing(num).pairs(drawn_order(num, rng.getrandbits(62)), answers)
        return [pair for pair in pairs for _ in range(self.votes)]


def our_way(pairing: str, aggregation: str, votes: int = 1) -> Way:
    """A way of the reward service. `ring_extra` gets two calls a completion."""
    name = f"{pairing}, {aggregation}" if votes == 1 else f"{pairing} x {votes} votes, {aggregation}"

    def scores(num: int, placed: Sequence[PlacedVerdict]) -> Sequence[float | None]:
        return scheme.scores(num, placed).scores

    scheme = Scheme(pairing_named(pairing), aggregation, votes)
    return Way(name, lambda num: pairing_named(pairing, calls=2 * num), lambda: scores, votes)


def published_scores(num: int, placed: Sequence[PlacedVerdict]) -> list[float | None]:
    """The mean of a completion's scores over its comparisons, whatever its place.

    Two equal scores of a verdict become s1 + (3.5 - r) and s2 - (3.5 - r), and a missing verdict counts as `FILLED`.
    """
    found: list[list[float]] = [[] for _ in range(num)]
    for v in placed:
        assert v.second is not None
        first, second, ranking = FILLED
        if v.verdict.scores is not None and v.verdict.ranking is not None:
            (first, second), ranking = v.verdict.scores, v.verdict.ranking
        lead = 3.5 - ranking if first == second else 0.0
        found[v.first].append(first + lead)
        found[v.second].append(second - lead)
    return [sum(scores) / len(scores) for scores in found]


class Matching:
    """Each of an even number of contenders is compared once, with a neighbour in the order: n / 2 calls."""

    def pairs(self, order: Sequence[int], answers: Answers) -> list[tuple[int, int | None]]:
        """See `reward_server.pairings.Pairing`."""
        return [(order[k], order[k + 1]) for k in range(0, len(order), 2)]


class LessLiking:
    """A completion's score in its one comparison, less half of the judge's liking for place 1, or plus half in place 2.

    Places are drawn at random, so the mean lead of place 1 over all verdicts of the run so far is that liking. Ties are
    broken as the service breaks them.
    """

    def __init__(self) -> None:
        self._leads = self._verdicts = 0.0

    def __call__(self, num: int, placed: Sequence[PlacedVerdict]) -> list[float | None]:
        liking = self._leads / self._verdicts if self._verdicts else 0.0
        found: list[float | None] = [None] * num
        for v in placed:
            if v.second is None or v.verdict.scores is None or v.verdict.ranking is None:
                continue
            first, second = v.verdict.scores
            self._leads += first - second
            self._verdicts += 1
            shift = TIE_BREAK * (NEUTRAL_RANKING - v.verdict.ranking) if first == second else 0.0
            found[v.first], found[v.second] = first + shift - liking / 2, second - shift + liking / 2
        return found


PUBLISHED = Way("published ring", lambda num: pairing_named("ring"), lambda: published_scores)
MATCHING = Way("matching", lambda num: Matching(), LessLiking)

_SETTINGS = RewardSettings()
DEFAULT = our_way(_SETTINGS.judge_pairing, _SETTINGS.judge_aggregation, _SETTINGS.judge_votes)
RING_MEAN, RING_LEAST_SQUARES = our_way("ring", "mean"), our_way("ring", "least_squares")
SINGLE = our_way("single", "mean")
WAYS = (
    PUBLISHED,
    RING_MEAN,
    RING_LEAST_SQUARES,
    SINGLE,
    MATCHING,
    *(
        our_way(pairing, aggregation, votes)
        for pairing, votes in (("ring", 2), ("ring", 4), ("ring_extra", 1), ("all_pairs", 1), ("both_orders", 1))
        for aggregation in ("mean", "least_squares")
    ),
)
SAME_AT_TWO = ("ring_extra", "all_pairs", "both_orders")  # pairings that for two completions are the ring


def ways_for(num: int) -> list[Way]:
    """Those that differ in groups of so many."""
    return [way for way in WAYS if num > 2 or not way.name.startswith(SAME_AT_TWO)]


@dataclass(frozen=True)
class Bench:
    """The judge, which verdicts go missing, and the tokens of a call.

    `missing` is the share of verdicts of pairs that are lost on average, see `losses`. The judge's prompt is its
    guidelines and the conversation (`opening`: 900 tokens and HelpSteer3's 2,638 characters), then the responses. What
    a call's prompt begins with like an earlier call of the group lies in the prefix cache and costs nothing. A
    verdict on a pair takes 3,000 tokens of output; one on a response alone is taken to need three fifths of that, since
    there is one response to analyse and nothing to compare. A lost verdict has run into the output limit.
    """

    judge: NoisyJudge = field(default_factory=NoisyJudge)
    missing: float = 0.05
    opening: int = 1560
    pair_output: int = 3000
    single_output: int = 1800
    lost_output: int = _SETTINGS.judge_max_tokens

    def prompt_tokens(self, calls: Sequence[Call], lengths: Sequence[float]) -> float:
        """Of all calls of a group, less what the prefix cache holds."""
        prompts = ([k for k in call if k is not None] for call in calls)
        prefixes = set(chain.from_iterable((tuple(p[:n]) for n in range(len(p) + 1)) for p in prompts))
        return sum(lengths[prefix[-1]] if prefix else self.opening for prefix in prefixes)

    def output_tokens(self, calls: Sequence[Call], lost: Sequence[bool]) -> int:
        """Of all calls of a group."""
        return sum(
            self.lost_output if gone else self.single_output if second is None else self.pair_output
            for (_, second), gone in zip(calls, lost, strict=True)
        )

    def losses(self, calls: Sequence[Call], lengths: Sequence[float], typical: float, rng: random.Random) -> list[bool]:
        """Whether each verdict goes missing: with a chance that grows as the square of the tokens it has to read.

        `typical` is the root of the mean squared length of a pair: what makes `missing` the mean.
        """
        read = (lengths[a] + (0 if b is None else lengths[b]) for a, b in calls)
        return [rng.random() < self.missing * (tokens / typical) ** 2 for tokens in read]

    def verdicts(
        self, calls: Sequence[Call], lost: Sequence[bool], truths: Sequence[float], rng: random.Random
    ) -> list[PlacedVerdict]:
        """What the judge says."""
        return [
            PlacedVerdict.model_construct(first=a, second=b, verdict=LOST if gone else said)
            for (a, b), gone in zip(calls, lost, strict=True)
            for said in [self.judge.verdict(truths[a], None if b is None else truths[b], rng)]
        ]


LOST = Verdict(missing="too_long")
