"""A window of the trace as one picture: a row for each part, time to the right, the worst waits in words.

A row shows each thing that it is waited for as a bar, in as many lanes as are needed. Where one of its kind needs more
than `MOST_LANES`, all of them show how many are in flight instead. Pushes of weights are bands through all rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle
from typing import TYPE_CHECKING

from trainer.canvas import INK, PALE, RULE, Canvas, elided, ticks, words_width
from trainer.ranks import REASONS
from trainer.trace import DRIVER, KINDS, STAGES_LANE, Event, kind_of

if TYPE_CHECKING:
    from PIL import Image

WIDTH, LEFT, RIGHT, TOP = 1500, 250, 50, 70
ROW, DRIVER_ROW, GAP = 26, 38, 8  # pixels
DISC = 9  # radius of a mark
MOST_LANES = 8
MOST_ROWS = 40  # beyond, the replicas at the end are one row
NUM_WORST, LEAST_SHARE = 3, 0.01
PUSH = "publish"  # the driver's stage

COLOURS = {
    "writes": "#4c8df6", "judges": "#f2a541", "steps": "#3aa76d", "accumulates": "#58b98a", "scores": "#7fcfa4",
    "sends weights": "#9b5de5", "loads weights": "#c79bf2", "saves": "#8d6e63", "exports": "#a1887f",
    "starts": "#90a4ae", "has no room": "#f28b82", "queue is full": "#e5534b", "does not answer": "#b71c1c",
    "is in the making": "#b9c0cc", "wait": "#e3e6ec", "step": "#3aa76d", PUSH: "#9b5de5", "checkpoint": "#8d6e63",
    "held_out": "#5c9ead", "export": "#a1887f",
}  # fmt: skip
OTHERS = ("#607d8b", "#795548", "#00838f", "#ad1457", "#827717")
BAND = "#efe6fc"
ALARM = "#c62828"
# What a part does for who waits: where nothing else is named, it is the work itself that takes long.
WORK = frozenset({"writes", "judges", *REASONS.values()})


@dataclass(frozen=True)
class Window:
    """What the picture shows. Times are seconds since the run's beginning; `steps` are steps and when they ended."""

    events: Sequence[Event]
    steps: Sequence[tuple[int, float]]
    start: float
    end: float

    def visible(self) -> list[Event]:
        """The events that lie in it, cut at its edges."""
        inside = [event for event in self.events if event.end >= self.start and event.start <= self.end]
        return [e._replace(start=max(e.start, self.start), end=min(e.end, self.end)) for e in inside]

    def x(self, when: float) -> float:
        """Where a time is, in pixels."""
        return LEFT + (when - self.start) / max(1e-9, self.end - self.start) * (WIDTH - LEFT - RIGHT)


def draw_timeline(window: Window) -> Image.Image:
    """The picture."""
    events = window.visible()
    rows = _rows(events)
    worst = worst_waits(window.events, window.start, window.end)
    tops = _tops(rows)
    bottom = tops[-1]
    colours = _colours(events)
    legend = _legend_lines(colours)
    canvas = Canvas(WIDTH, round(bottom + 44 + 24 * len(legend) + 26 * max(1, len(worst)) + 12))
    _draw_frame(canvas, window, bottom)
    _draw_bands(canvas, window, events, bottom)
    places: dict[str, float] = {}
    crowded = {kind_of(event.row) for event in events if event.lane >= MOST_LANES}
    for (row, bars), top, next_top in zip(rows, tops, tops[1:], strict=False):
        height = next_top - top - GAP
        canvas.words(LEFT - 12, top + height / 2, elided(_short(row), LEFT - 30), anchor="rm")
        canvas.line([(LEFT, next_top - GAP / 2), (WIDTH - RIGHT, next_top - GAP / 2)], RULE)
        if bars and kind_of(bars[0].row) in crowded and row != DRIVER:
            _draw_number(canvas, window, bars, top, colours)
        else:
            _draw_bars(canvas, window, bars, (top, height), colours)
        places |= {event.row: top + height / 2 for event in bars}
    _draw_worst(canvas, window, worst, places, bottom + 44 + 24 * len(legend))
    _draw_legend(canvas, legend, colours, bottom + 44)
    return canvas.image()


# --- what is shown


def _rows(events: Iterable[Event]) -> list[tuple[str, list[Event]]]:
    """Rows from the top with their events; replicas beyond what the page holds are one row."""
    by_row: defaultdict[str, list[Event]] = defaultdict(list, {DRIVER: []})
    for event in events:
        by_row[event.row].append(event)
    names = sorted(by_row, key=_order)
    surplus = len(names) - MOST_ROWS
    last = [name for name in names if kind_of(name) == "replica"][-(surplus + 1) :] if surplus > 0 else []
    rows = [(name, by_row[name]) for name in names if name not in last]
    if last:
        place = 1 + max(i for i, (name, _) in enumerate(rows) if _order(name) < _order(last[0]))
        # Lanes of different replicas are different lanes of the common row.
        joined = [e._replace(lane=e.lane * len(last) + i) for i, name in enumerate(last) for e in by_row[name]]
        rows.insert(place, (f"{len(last)} more replicas", joined))
    return rows


def _order(row: str) -> tuple[int, list[tuple[int, int, str]]]:
    """Kinds from the top; within one, numbers by their size."""
    kind = kind_of(row)
    pieces = "".join(c if c.isdigit() else f" {c} " for c in row).split()
    key = [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in pieces]
    return KINDS.index(kind) if kind in KINDS else len(KINDS), key


def _tops(rows: Sequence[tuple[str, list[Event]]]) -> list[float]:
    """Where each row begins, and where the last one ends."""
    heights = [(DRIVER_ROW if row == DRIVER else ROW) + GAP for row, _ in rows]
    return list(accumulate(heights, initial=float(TOP)))


def worst_waits(events: Iterable[Event], start: float, end: float) -> list[Event]:
    """The waits that take most of the window, of each peer's kind and reason one, the longest first.

    What holds others up without any work being done is taken before the work that took longest; what takes less than
    `LEAST_SHARE` of the window is left out.
    """

    def inside(event: Event) -> float:
        return min(event.end, end) - max(event.start, start)

    longest: dict[tuple[str, str], Event] = {}
    for event in events:
        if inside(event) < LEAST_SHARE * (end - start) or (event.row == DRIVER and event.lane == STAGES_LANE):
            continue
        key = (kind_of(event.row), event.reason)
        if key not in longest or inside(event) > inside(longest[key]):
            longest[key] = event
    found = sorted(longest.values(), key=lambda event: (event.reason in WORK, -inside(event)))[:NUM_WORST]
    return sorted(found, key=lambda event: event.start - event.end)


def in_words(event: Event, events: Iterable[Event]) -> str:
    """A wait as a sentence; of one for a group, with what that group itself waited for longest meanwhile."""
    seconds = f"{event.end - event.start:.1f} s from {clock(event.start)}"
    if event.row != DRIVER:
        return f"{seconds}: {event.who} waits for {_short(event.row)}: {event.reason}"
    sentence = f"{seconds}: {event.who} waits: {event.name}"
    group = event.name.removesuffix(event.reason).strip()
    meanwhile = [e for e in events if e.who == group and min(e.end, event.end) > max(e.start, event.start)]
    if not meanwhile:
        return sentence
    cause = max(meanwhile, key=lambda e: min(e.end, event.end) - max(e.start, event.start))
    return f"{sentence}; for it {_short(cause.row)} {cause.reason}, {cause.end - cause.start:.1f} s"


def _short(name: str) -> str:
    return name.replace("http://", "").replace("https://", "")


def clock(seconds: float) -> str:
    """Seconds of the run as h:mm:ss, with tenths below a minute."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{int(rest):02d}" if hours or minutes else f"{rest:.1f} s"


# --- how


def _draw_frame(canvas: Canvas, window: Window, bottom: float) -> None:
    steps = [step for step, when in window.steps if window.start < when <= window.end]
    title = f"Who waited for whom, {clock(window.start)} to {clock(window.end)} of the run"
    if steps:
        title += f", step {steps[0]}" if len(steps) == 1 else f", steps {steps[0]} to {steps[-1]}"
    canvas.words(20, 22, title, size=17)
    span = window.end - window.start
    num_decimals = 0 if span > 20 else 1 if span > 2 else 2
    for offset in ticks(0, span, 10):
        x = window.x(window.start + offset)
        canvas.line([(x, TOP - 6), (x, bottom)], RULE)
        canvas.words(x, bottom + 12, f"+{offset:.{num_decimals}f} s", PALE, 12, "mm")


def _draw_bands(canvas: Canvas, window: Window, events: Iterable[Event], bottom: float) -> None:
    """Pushes, and the ends of the steps."""
    for event in events:
        if event.row == DRIVER and event.lane == STAGES_LANE and event.name == PUSH:
            canvas.box(window.x(event.start), TOP - 6, window.x(event.end), bottom, BAND)
    free_from = 0.0
    for step, when in window.steps:
        if not window.start < when <= window.end:
            continue
        x, words = window.x(when), f"step {step} ends"
        canvas.line([(x, TOP - 10), (x, bottom)], PALE)
        left = min(x - words_width(words, 12) / 2, WIDTH - words_width(words, 12) - 8)
        if left > free_from:
            canvas.words(left, TOP - 18, words, PALE, 12)
            free_from = left + words_width(words, 12) + 10


def _draw_bars(
    canvas: Canvas, window: Window, bars: Sequence[Event], place: tuple[float, float], colours: dict[str, str]
) -> None:
    """A bar for each event; `place` is top and height of the row."""
    top, height = place
    lanes = {lane: index for index, lane in enumerate(sorted({event.lane for event in bars}))}
    for event in bars:
        thickness = height / len(lanes)
        y = top + lanes[event.lane] * thickness
        left, right = window.x(event.start), window.x(event.end)
        gap = 0.5 if len(lanes) > 1 else 0
        canvas.box(left, y + gap, max(right - 0.5, left), y + thickness - gap, colours[event.reason])
        room_for_mark = 2 * DISC + 8  # at the bar's beginning
        if thickness >= 12 and words_width(event.name, 11) < right - left - room_for_mark - 4:
            canvas.words(left + room_for_mark, y + thickness / 2, event.name, INK, 11)


def _draw_number(canvas: Canvas, window: Window, bars: Sequence[Event], top: float, colours: dict[str, str]) -> None:
    """How many are in flight, a column a pixel, the reasons on top of one another."""
    columns = WIDTH - LEFT - RIGHT
    by_reason = {reason: [0.0] * (columns + 2) for reason in sorted({event.reason for event in bars})}
    for event in bars:
        # An edge changes the number from its column on, and in its own column by the part that is to its right.
        for edge, sign in ((window.x(event.start) - LEFT, 1.0), (window.x(event.end) - LEFT, -1.0)):
            column, rest = int(edge), edge - int(edge)
            by_reason[event.reason][column] += sign * (1 - rest)
            by_reason[event.reason][column + 1] += sign * rest
    counts = {reason: list(accumulate(changes))[:columns] for reason, changes in by_reason.items()}
    most = max(*(sum(column) for column in zip(*counts.values(), strict=True)), 1.0)
    base = [top + ROW] * columns
    for reason, in_flight in counts.items():
        upper = [y - number / most * ROW for y, number in zip(base, in_flight, strict=True)]
        there = list(enumerate(upper)) + list(enumerate(base))[::-1]
        canvas.area([(LEFT + column, y) for column, y in there], colours[reason])
        base = upper
    canvas.words(WIDTH - RIGHT + 6, top + ROW / 2, f"max {most:.0f}", PALE, 11)


def _draw_worst(canvas: Canvas, window: Window, worst: Sequence[Event], places: dict[str, float], below: float) -> None:
    taken: list[tuple[float, float]] = []
    for index, event in enumerate(worst, 1):
        left, right = window.x(max(event.start, window.start)), window.x(min(event.end, window.end))
        x, y = (left + right) / 2 if right - left < 4 * DISC else left + DISC + 4, places[event.row]
        while any(abs(x - other) < 2 * DISC + 2 and abs(y - height) < 2 * DISC for other, height in taken):
            x += 2 * DISC + 4
        taken.append((x, y))
        line = below + 13 + 26 * (index - 1)
        for across, down in ((x, y), (30, line)):
            canvas.disc(across, down, DISC, ALARM)
            canvas.words(across, down, str(index), "#ffffff", 12, "mm")
        canvas.words(48, line, elided(in_words(event, window.events), WIDTH - 70))
    if not worst:
        canvas.words(20, below + 13, "nobody waited", PALE)


def _colours(events: Iterable[Event]) -> dict[str, str]:
    """A colour for each reason, in the order of the palette and then of the alphabet."""
    reasons = {event.reason for event in events}
    others = dict(zip(sorted(reasons - COLOURS.keys()), cycle(OTHERS), strict=False))
    return {reason: colour for reason, colour in COLOURS.items() if reason in reasons} | others


def _legend_lines(colours: dict[str, str]) -> list[list[tuple[str, float]]]:
    """Reasons with their places, broken into lines."""
    lines: list[list[tuple[str, float]]] = [[]]
    x = 20.0
    for reason in colours:
        width = 20 + words_width(reason, 12) + 24
        if x + width > WIDTH - 20 and lines[-1]:
            lines.append([])
            x = 20.0
        lines[-1].append((reason, x))
        x += width
    return lines


def _draw_legend(
    canvas: Canvas, lines: Sequence[Sequence[tuple[str, float]]], colours: dict[str, str], top: float
) -> None:
    for index, line in enumerate(lines):
        y = top + 24 * index
        for reason, x in line:
            canvas.box(x, y - 6, x + 14, y + 6, colours[reason])
            canvas.words(x + 20, y, reason, INK, 12)
