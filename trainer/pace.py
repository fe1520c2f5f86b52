"""How fast a count grows."""

from __future__ import annotations

from collections import deque


class Rate:
    """Growth of a count over the last seconds.

    Args:
        window_s: seconds that it is taken over.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._noted: deque[tuple[float, float]] = deque()  # (time, count) of each change, and the last look

    def note(self, now: float, count: float) -> None:
        """The count at this time. One that is smaller than before is another count: it begins anew."""
        noted = self._noted
        if noted and count < noted[-1][1]:
            noted.clear()
        if len(noted) > 1 and count == noted[-1][1] == noted[-2][1]:
            noted.pop()  # nothing happened: the middle of three looks says nothing
        noted.append((now, count))
        while len(noted) > 2 and noted[1][0] <= now - self._window_s:
            noted.popleft()

    @property
    def per_s(self) -> float | None:
        """Growth a second over the window; None before the second look."""
        if len(self._noted) < 2 or self._noted[-1][0] <= self._noted[0][0]:
            return None
        (start, before), (end, after) = self._noted[0], self._noted[-1]
        return (after - before) / (end - start)
