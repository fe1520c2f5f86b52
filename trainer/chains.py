"""Waits that hang on one another: the driver waits for group 12, which waits for a GenRM server.

Whom a wait is for may wait itself, under the same name; so the waits of a program make chains, from whoever nobody
waits for to whoever works.
"""

from __future__ import annotations

from collections.abc import Sequence

from wire.waits import Wait


class Chains:
    """The chains of a program's waits.

    Args:
        waits: what is waited for now, the oldest first, as `Waits.current` gives it.
    """

    def __init__(self, waits: Sequence[Wait]) -> None:
        self._oldest_of: dict[str, Wait] = {}  # by who waits
        self._oldest_for: dict[str, Wait] = {}  # by who is waited for
        for wait in waits:
            self._oldest_of.setdefault(wait.who, wait)
            self._oldest_for.setdefault(wait.peer, wait)

    def through(self, wait: Wait) -> list[Wait]:
        """The chain that `wait` is a link of; where there is a choice, the wait that has lasted longest."""
        links = [wait]
        while (before := self._oldest_for.get(links[0].who)) is not None and before not in links:
            links.insert(0, before)
        while (after := self._oldest_of.get(links[-1].peer)) is not None and after not in links:
            links.append(after)
        return links


def described(chain: Sequence[Wait], now: float) -> str:
    """A chain in words: `driver -> group 12 (is in the making, 420 s) -> genrm http://... (judges, 312 s)`.

    `now`: of the loop's clock, as the waits' times are.
    """
    links = [f"{wait.peer} ({wait.reason}, {now - wait.since:.0f} s)" for wait in chain]
    return " -> ".join([chain[0].who, *links])
