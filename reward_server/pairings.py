"""Who is compared with whom: pure functions of a seeded order and of the answers known so far.

    order (from the seed)            2, 0, 3, 1
    0 and 3 are known                the ring holds (0, 3) for certain
    1 turns out to be empty          it is left out, and the ring closes over it: 2, 0, 3, back to 2
    2 turns out to be the like of 0  2 comes first in the order and is compared for both: 2, 3, back to 2

A *contender* is a completion that is compared: it has an answer, and none before it in the order has the same. A pair
is certain when it is in the final plan whatever the completions still in the making turn out to be, short of
duplicates: a judgement need not wait for the whole group, and the plan never depends on the order of arrival. Where
there is only one contender, every pairing has it judged alone, `(a, None)`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol

from reward_server.seeds import derived_seed
from wire.errors import ConfigError

Answers = Mapping[int, str | None]  # completion -> its answer; None: nothing to judge; absent: still in the making


class Pairing(Protocol):
    """Who is compared with whom."""

    def pairs(self, order: Sequence[int], answers: Answers) -> list[tuple[int, int | None]]:
        """(place 1, place 2) of the pairs that are certain; with every answer known, the whole plan. None comes twice.

        A pair that was certain stays in the plan, unless a completion that stands earlier in the order turns out to
        have the answer of one that was known before.

        Args:
            order: a permutation of 0..K-1, see `drawn_order`.
            answers: what is known of them.
        """
        ...


def drawn_order(num: int, seed: int) -> list[int]:
    """A random order of 0..num-1, drawn from `seed` alone. Orders of arrival would pair completions of like length."""
    order = list(range(num))
    random.Random(derived_seed("ring", seed)).shuffle(order)
    return order


@dataclass(frozen=True)
class Single:
    """Each of n contenders is judged alone: n calls."""

    def pairs(self, order: Sequence[int], answers: Answers) -> list[tuple[int, int | None]]:
        """See `Pairing`."""
        return [(a, None) for a in _row(order, answers) if a in answers]


@dataclass(frozen=True)
class Ring:
    """Each of n contenders is compared with the next in the order, the last with the first: n calls.

    Each stands once in place 1 and once in place 2; two are compared in both orders. Source: the circular comparison
    of Nemotron 3 Nano (arXiv 2512.20848).
    """

    def pairs(self, order: Sequence[int], answers: Answers) -> list[tuple[int, int | None]]:
        """See `Pairing`."""
        row = _row(order, answers)
        return _alone(row, answers) or [(a, b) for a, b, between in _ordered_pairs(row, answers) if not between]


@dataclass(frozen=True)
class RingExtra:
    """The ring, then random ordered pairs that it lacks, until there are `calls` pairs or none is left.

    The extra pairs are the first that qualify in one random sequence of all ordered pairs, drawn from the order.
    """

    calls: int

    def pairs(self, order: Sequence[int], answers: Answers) -> list[tuple[int, int | None]]:
        """See `Pairing`."""
        row, pairs = _row(order, answers), Ring().pairs(order, answers)
        if len(row) < 2:
            return pairs
        drawn = list(permutations(order, 2))
        random.Random(derived_seed("extra pairs", *order)).shuffle(drawn)
        eligible = [pair for pair in drawn if pair[0] in row and pair[1] in row and pair not in pairs]
        # Those in the making may all become contenders: then the ring is as long as the row, and their pairs count too.
        extra = eligible[: max(0, self.calls - len(row))]
        return pairs + [(a, b) for a, b in extra if a in answers and b in answers]


@dataclass(frozen=True)
class AllPairs:
    """Each pair of n contenders is compared once: n (n - 1) / 2 calls; two contenders are compared in both orders.

    Neighbours stand as in the ring, so that each contender stands in both places; of other pairs that one is first
    from which the other is less than half of the order ahead, so that each stands in both places about equally often.
    """

    def pairs(self, order: Sequence[int], answers: Answers) -> list[tuple[int, int | None]]:
        """See `Pairing`."""
        row = _row(order, answers)
        arcs = {(a, b): between for a, b, between in _ordered_pairs(row, answers)}
        place = {k: position for position, k in enumerate(order)}

        def leads(a: int, b: int) -> bool:
            ahead, half = (place[b] - place[a]) % len(order), len(order) / 2
            return ahead < half or (ahead == half and place[a] < place[b])

        def stands(a: int, b: int) -> bool:
            followed_by_b = not arcs[a, b]
            never_following_b = any(k in answers for k in arcs[b, a])
            return followed_by_b or (never_following_b and leads(a, b))

        return _alone(row, answers) or [pair for pair in arcs if stands(*pair)]


@dataclass(frozen=True)
class BothOrders:
    """Each pair of n contenders is compared in both orders: n (n - 1) calls."""

    def pairs(self, order: Sequence[int], answers: Answers) -> list[tuple[int, int | None]]:
        """See `Pairing`."""
        row = _row(order, answers)
        return _alone(row, answers) or [(a, b) for a, b, _ in _ordered_pairs(row, answers)]


PAIRINGS: dict[str, Callable[[int], Pairing]] = {  # name -> pairing of a group with that many judge calls
    "single": lambda calls: Single(),
    "ring": lambda calls: Ring(),
    "ring_extra": RingExtra,
    "all_pairs": lambda calls: AllPairs(),
    "both_orders": lambda calls: BothOrders(),
}


def pairing_named(name: str, *, calls: int = 0) -> Pairing:
    """The pairing of that name; `calls` is the group's budget of judge calls, which `ring_extra` alone heeds.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PAIRINGS:
        raise ConfigError(f"no pairing is named {name!r}; use one of {', '.join(PAIRINGS)}")
    return PAIRINGS[name](calls)


def _row(order: Sequence[int], answers: Answers) -> list[int]:
    """The contenders and those that may yet become one, in the order."""
    seen: set[str] = set()
    row = []
    for k in order:
        answer = answers.get(k)
        if k in answers and (answer is None or answer in seen):
            continue
        if answer is not None:
            seen.add(answer)
        row.append(k)
    return row


def _alone(row: list[int], answers: Answers) -> list[tuple[int, int | None]]:
    return [(row[0], None)] if len(row) == 1 and row[0] in answers else []


def _ordered_pairs(row: list[int], answers: Answers) -> Iterator[tuple[int, int, list[int]]]:
    """Two known contenders a and b with those of the row that stand between them on the way from a round to b."""
    for start, a in enumerate(row):
        onwards = row[start + 1 :] + row[:start]
        for distance, b in enumerate(onwards):
            if a in answers and b in answers:
                yield a, b, onwards[:distance]
