"""Pairs judged in both orders: whom the judge prefers, and how often people do too.

A verdict's ranking r is 1..6, below 3.5 for the response in place 1. With the responses in each other's place the same
preference is r' = 7 - r. The judge's *lean* on a pair is the mean of the ranking and of the swapped one turned round,
less 3.5: below 0 response 1 wins. The judge's liking for a place adds to one and takes from the other, and cancels.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from reward_server.aggregate import NEUTRAL_RANKING
from reward_server.client import RewardClient
from reward_server.consistency import flipped, swapped
from reward_server.preferences import PreferencePair
from reward_server.seeds import derived_seed
from wire.errors import ServiceError
from wire.judgement import Verdict

T = TypeVar("T")


@dataclass(frozen=True)
class JudgedPair:
    """A pair with the verdicts on (response 1, response 2) and on (response 2, response 1)."""

    pair: PreferencePair
    in_order: Verdict
    turned: Verdict

    @property
    def lean(self) -> float | None:
        """-2.5..2.5, below 0 where response 1 wins, 0 where neither does; None where a verdict is missing."""
        if self.in_order.ranking is None or self.turned.ranking is None:
            return None
        return (self.in_order.ranking + swapped(self.turned.ranking)) / 2 - NEUTRAL_RANKING

    @property
    def agrees(self) -> bool | None:
        """Whether the judge prefers what people prefer; None where either has no preference."""
        if not self.lean or not self.pair.preference:
            return None
        return (self.lean < 0) == (self.pair.preference < 0)


@dataclass(frozen=True)
class Figures:
    """What many judged pairs show. A share is None where nothing was there to count.

    `num_compared` pairs have a human preference and a winner of the judge's; `num_undecided` have both verdicts and no
    winner. Ties and contradictions are counted over the verdicts given. `seconds` and `tokens` are means of a verdict,
    its retries included.
    """

    num_pairs: int
    num_compared: int
    num_right: int
    num_undecided: int
    num_flips: int
    num_both_orders: int
    num_verdicts: int
    num_ties: int
    num_contradictions: int
    missing: dict[str, int]
    seconds: float
    tokens: float

    @classmethod
    def of(cls, judged: Sequence[JudgedPair]) -> Figures:
        """Count."""
        verdicts = [verdict for one in judged for verdict in (one.in_order, one.turned)]
        outcomes = [one.agrees for one in judged if one.agrees is not None]
        turns = [turn for one in judged if (turn := flipped(one.in_order, one.turned)) is not None]
        return cls(
            num_pairs=len(judged),
            num_compared=len(outcomes),
            num_right=sum(outcomes),
            num_undecided=sum(one.lean == 0 for one in judged),
            num_flips=sum(turns),
            num_both_orders=len(turns),
            num_verdicts=len(verdicts),
            num_ties=sum(verdict.ties for verdict in verdicts),
            num_contradictions=sum(verdict.contradicts for verdict in verdicts),
            missing=dict(Counter(verdict.missing for verdict in verdicts if verdict.missing)),
            seconds=sum(verdict.seconds for verdict in verdicts) / max(1, len(verdicts)),
            tokens=sum(verdict.completion_tokens for verdict in verdicts) / max(1, len(verdicts)),
        )

    @property
    def agreement(self) -> float | None:
        """Of the pairs compared, those on which judge and people agree."""
        return _share(self.num_right, self.num_compared)

    @property
    def undecided_share(self) -> float | None:
        """Of the pairs judged in both orders, those without a winner."""
        return _share(self.num_undecided, self.num_both_orders)

    @property
    def flip_share(self) -> float | None:
        """Of the pairs judged in both orders, those whose winner turned with the order."""
        return _share(self.num_flips, self.num_both_orders)

    @property
    def tie_share(self) -> float | None:
        """Of the verdicts given, those with equal individual scores."""
        return _share(self.num_ties, self._num_given)

    @property
    def contradiction_share(self) -> float | None:
        """Of the verdicts given, those whose ranking prefers the response with the lower score."""
        return _share(self.num_contradictions, self._num_given)

    @property
    def unreadable_share(self) -> float | None:
        """Of all verdicts, those that could not be read after all retries."""
        return _share(self.missing.get("unreadable", 0), self.num_verdicts)

    @property
    def missing_share(self) -> float | None:
        """Of all verdicts, those that are missing for whatever reason."""
        return _share(sum(self.missing.values()), self.num_verdicts)

    @property
    def reasons(self) -> str:
        """The missing verdicts by reason, such as `timeout 3, too_long 1`."""
        return ", ".join(f"{reason} {num}" for reason, num in sorted(self.missing.items())) or "none"

    @property
    def _num_given(self) -> int:
        return self.num_verdicts - sum(self.missing.values())


async def judge_pair(client: RewardClient, pair: PreferencePair) -> JudgedPair:
    """Both orders, asked at once. The seeds follow from the texts.

    Raises:
        Unauthorized: the service refuses the token.
        ServiceError: the service itself is lost, which no missing verdict may hide.
    """

    async def verdict(first: str, second: str) -> Verdict:
        found = await client.judge(pair.conversation, (first, second), derived_seed("pair", first, second))
        check_answered(client, found)
        return found

    in_order, turned = await _all_or_none(
        [verdict(pair.response1, pair.response2), verdict(pair.response2, pair.response1)]
    )
    return JudgedPair(pair, in_order, turned)


async def judge_pairs(client: RewardClient, pairs: Sequence[PreferencePair], title: str) -> list[JudgedPair]:
    """All pairs at once, with a progress bar called `title`; raises as `judge_pair` does."""
    with tqdm(total=len(pairs), desc=title, unit="pair", leave=False, mininterval=1.0) as bar:
        return await _all_or_none([judge_pair(client, pair) for pair in pairs], bar.update)


def check_answered(client: RewardClient, verdict: Verdict) -> None:
    """Raises ServiceError where a verdict is missing because nobody answered at the service's own URL."""
    if verdict.missing == "server_lost" and verdict.server == client.url:
        raise ServiceError(f"the reward service at {client.url} is lost: {verdict.text[:300] or 'it does not answer'}")


async def _all_or_none(work: Iterable[Coroutine[Any, Any, T]], on_done: Callable[[], object] = lambda: None) -> list[T]:
    """All results, in order; the first failure cancels the others."""
    tasks = [asyncio.create_task(one) for one in work]
    for task in tasks:
        task.add_done_callback(lambda _: on_done())
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
