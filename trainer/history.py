"""The curves of a run, thinned out so that weeks of steps stay a page of numbers.

Each point is the mean over `stride` steps. When there are more than `MOST_POINTS`, neighbours become one and the stride
doubles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec

MOST_POINTS = 1000


class Point(msgspec.Struct):
    """Steps up to `step`: of each quantity the sum and the number of its values."""

    step: int
    num_steps: int
    sums: dict[str, tuple[float, int]]

    def join(self, other: Point) -> None:
        """Take in the point that follows."""
        self.step, self.num_steps = other.step, self.num_steps + other.num_steps
        for name, (total, num) in other.sums.items():
            before, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (before + total, count + num)


class Curves(msgspec.Struct):
    """The file's content."""

    stride: int
    points: list[Point]


class History:
    """Keeps the curves of one run in a file.

    Args:
        path: the file; what it has beyond `first_step` is dropped, for it is gone with the weights.
        first_step: steps done before, by the run that is resumed.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self._path = path
        self._curves = Curves(1, [])
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Curves)
        except (OSError, msgspec.DecodeError):
            return
        kept = [point for point in found.points if point.step <= first_step]
        self._curves = Curves(found.stride if kept else 1, kept)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """The values of one step; what is not a number is left out."""
        sums = {name: (float(value), 1) for name, value in values.items() if math.isfinite(value)}
        point, points = Point(step, 1, sums), self._curves.points
        if points and points[-1].num_steps < self._curves.stride:
            points[-1].join(point)
        else:
            points.append(point)
        if len(points) > MOST_POINTS:
            for first, second in zip(points[::2], points[1::2], strict=False):
                first.join(second)
            self._curves = Curves(2 * self._curves.stride, points[::2])

    def curve(self, name: str) -> list[tuple[float, float]]:
        """Step and mean of each point that has the quantity."""
        found = [(point.step, point.sums.get(name, (0.0, 0))) for point in self._curves.points]
        return [(float(step), total / num) for step, (total, num) in found if num]

    def save(self) -> None:
        """Write the file whole or not at all."""
        aside = self._path.with_suffix(".partial")
        aside.write_bytes(msgspec.json.encode(self._curves))
        aside.rename(self._path)
