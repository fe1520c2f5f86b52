"""The curves of a run as one picture: score, KL, length, cut share, lag, and how busy each part was, over steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.canvas import INK, PALE, RULE, Canvas, number, ticks, words_width

if TYPE_CHECKING:
    from PIL import Image

Curve = Sequence[tuple[float, float]]

BLUE, ORANGE, GREEN = "#2563eb", "#e07b00", "#1a9850"


@dataclass(frozen=True)
class Panel:
    """One small chart. `lines`: metric, its name in the legend, colour; `low` and `high` are shown at the least."""

    title: str
    lines: tuple[tuple[str, str, str], ...]
    low: float | None = None
    high: float | None = None


PANELS = (
    Panel("score", (("objective/scores", "", BLUE),)),
    Panel("KL to the reference, nats a completion", (("objective/kl", "", BLUE),)),
    Panel("length, tokens a completion", (("sample/length_mean", "", BLUE),), low=0),
    Panel("share of completions that were cut", (("sample/truncated", "", BLUE),), low=0, high=0.1),
    Panel("lag, steps", (("sample/lag_mean", "mean", BLUE), ("sample/lag_max", "max", ORANGE)), low=0, high=1),
    Panel(
        "share of the time at work",
        (
            ("util/replicas", "replicas", BLUE),
            ("util/judge", "judge", ORANGE),
            ("util/learner", "learner", GREEN),
        ),
        low=0,
        high=1,
    ),
)
METRICS = tuple(metric for panel in PANELS for metric, *_ in panel.lines)

WIDTH, PANEL_HEIGHT, COLUMNS, TOP = 1500, 300, 3, 46
LEFT, RIGHT, ABOVE, BELOW = 66, 62, 34, 34  # of a panel's plot


def draw_curves(curve: Callable[[str], Curve]) -> Image.Image:
    """The picture; `curve` gives step and value of a metric."""
    rows = -(-len(PANELS) // COLUMNS)
    canvas = Canvas(WIDTH, TOP + rows * PANEL_HEIGHT)
    curves = {metric: curve(metric) for metric in METRICS}
    steps = [step for points in curves.values() for step, _ in points]
    first, last = (min(steps), max(steps)) if steps else (0.0, 0.0)
    canvas.words(20, 24, f"The run, steps {first:.0f} to {last:.0f}", size=17)
    for index, panel in enumerate(PANELS):
        left = index % COLUMNS * WIDTH / COLUMNS + LEFT
        top = TOP + index // COLUMNS * PANEL_HEIGHT + ABOVE
        frame = Frame(left, top, left + WIDTH / COLUMNS - LEFT - RIGHT, top + PANEL_HEIGHT - ABOVE - BELOW, first, last)
        _draw_panel(canvas, panel, frame, curves)
    return canvas.image()


@dataclass(frozen=True)
class Frame:
    """A plot's place in pixels, and its steps."""

    left: float
    top: float
    right: float
    bottom: float
    first: float
    last: float

    def x(self, step: float) -> float:
        """Where a step is."""
        return self.left + (step - self.first) / max(1e-9, self.last - self.first) * (self.right - self.left)


def _draw_panel(canvas: Canvas, panel: Panel, frame: Frame, curves: dict[str, Curve]) -> None:
    values = [value for metric, *_ in panel.lines for _, value in curves[metric]]
    bounds = [bound for bound in (panel.low, panel.high) if bound is not None]
    low, high = (min(values + bounds), max(values + bounds)) if values or len(bounds) == 2 else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    margin = 0.04 * (high - low)
    low, high = (low if low == panel.low else low - margin), high + margin

    def y(value: float) -> float:
        return frame.bottom - (value - low) / (high - low) * (frame.bottom - frame.top)

    canvas.words(frame.left, frame.top - 20, panel.title, size=14)
    for value in ticks(low, high, 5):
        canvas.line([(frame.left, y(value)), (frame.right, y(value))], RULE)
        canvas.words(frame.left - 8, y(value), number(value), PALE, 12, "rm")
    for step in ticks(frame.first, frame.last, 5):
        if step == round(step):
            canvas.line([(frame.x(step), frame.bottom), (frame.x(step), frame.bottom + 4)], PALE)
            canvas.words(frame.x(step), frame.bottom + 14, number(step), PALE, 12, "mm")
    if not values:
        canvas.words((frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2, "not measured", PALE, 13, "mm")
    ends: list[tuple[float, str, str]] = []
    for metric, _, colour in panel.lines:
        points = [(frame.x(step), y(value)) for step, value in curves[metric]]
        if len(points) > 1:
            canvas.line(points, colour, 1.5)
        if points:
            canvas.disc(*points[-1], 3, colour)
            ends.append((points[-1][1], number(round(curves[metric][-1][1], 3)), colour))
    for place, (_, text, colour) in zip(_apart([end for end, *_ in sorted(ends)], 14), sorted(ends), strict=True):
        canvas.words(frame.right + 8, place, text, colour, 12)
    _draw_legend(canvas, panel, frame)


def _draw_legend(canvas: Canvas, panel: Panel, frame: Frame) -> None:
    """Names of the lines, at the right end of the title's line."""
    x = frame.right
    for _, name, colour in reversed([line for line in panel.lines if line[1]]):
        x -= words_width(name, 12)
        canvas.words(x, frame.top - 20, name, INK, 12)
        canvas.line([(x - 18, frame.top - 20), (x - 5, frame.top - 20)], colour, 3)
        x -= 32


def _apart(places: Sequence[float], least: float) -> list[float]:
    """Ascending places, moved down as far as needed to be `least` from one another."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + least) if moved else place)
    return moved
