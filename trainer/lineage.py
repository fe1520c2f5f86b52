"""Which weights are ancestors of those that are trained now.

    lineage 0    0.0 -- 0.1 -- 0.2 -- 0.3 -- 0.4      died; its last checkpoint was of step 2
                                 \\
    lineage 1                     1.2 -- 1.3 -- ...   0.0 to 0.2 are ancestors, 0.3 and 0.4 are not

What an ancestor wrote may be trained on, within the bound on lag. What another wrote may not: no weights that are
trained now ever wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wire.generation import PolicyVersion


@dataclass(frozen=True)
class Fork:
    """A lineage began as a copy of its parent's weights of `step`."""

    parent: int
    step: int


class Lineage:
    """A lineage with its ancestors.

    Args:
        current: the one that is trained.
        forks: how each lineage that was ever begun branched off; one that is not named began from nothing.
    """

    def __init__(self, current: int, forks: Mapping[int, Fork]) -> None:
        self.current = current
        self._last: dict[int, float] = {current: float("inf")}  # by lineage: the last step that is an ancestor's
        number, last = current, float("inf")
        while number in forks and forks[number].parent not in self._last:
            last = min(last, forks[number].step)
            number = forks[number].parent
            self._last[number] = last

    def holds(self, version: PolicyVersion) -> bool:
        """Whether these weights are an ancestor's, or of the lineage itself."""
        return version.step <= self._last.get(version.lineage, -1)
