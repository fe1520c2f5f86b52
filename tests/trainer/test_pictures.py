"""The pictures: that they are drawn, off the loop, and show what they are to show."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageColor

from trainer.canvas import elided, ticks, words_width
from trainer.curves import METRICS, draw_curves
from trainer.pictures import Pictures
from trainer.timeline import (
    BAND,
    COLOURS,
    DRIVER_ROW,
    GAP,
    LEFT,
    MOST_LANES,
    MOST_ROWS,
    RIGHT,
    ROW,
    TOP,
    WIDTH,
    Window,
    draw_timeline,
    in_words,
    worst_waits,
)  # fmt: skip
from trainer.trace import DRIVER, Event, Trace
from wire.waits import Waits

REPLICA = "replica http://10.0.0.1:8000"


def event(row: str, reason: str, start: float, end: float, *, lane: int = 0, who: str = "group 1") -> Event:
    return Event(row, lane, reason, who, reason, start, end)


def stage(name: str, start: float, end: float) -> Event:
    return event(DRIVER, name, start, end, who=DRIVER)


def for_group(number: int, start: float, end: float) -> Event:
    name = f"group {number} is in the making"
    return Event(DRIVER, 1, name, DRIVER, "is in the making", start, end)


def draw(*events: Event, end: float = 10.0) -> Image.Image:
    return draw_timeline(Window(events, [(1, end / 2)], 0.0, end))


def pixel(image: Image.Image, row: int, when: float, *, end: float = 10.0, height: float = 0.5) -> Any:
    """The colour in a row, the driver's is 0, at a time; `height` from its top to its bottom."""
    top = TOP if row == 0 else TOP + DRIVER_ROW + GAP + (row - 1) * (ROW + GAP)
    tall = DRIVER_ROW if row == 0 else ROW
    return image.getpixel((round(LEFT + when / end * (WIDTH - LEFT - RIGHT)), round(top + height * tall)))


def colour(reason: str) -> tuple[int, ...]:
    return ImageColor.getrgb(COLOURS[reason])


def test_a_bar_lies_in_its_row_at_its_time() -> None:
    image = draw(stage("wait", 0, 5), stage("step", 5, 9), event(REPLICA, "writes", 2, 6.5))
    assert pixel(image, 0, 4.6) == colour("wait") and pixel(image, 0, 8.6) == colour("step")
    assert pixel(image, 1, 6.2) == colour("writes")
    assert pixel(image, 1, 1.5) == pixel(image, 1, 7.5) == (255, 255, 255)


def test_a_push_is_a_band_through_all_rows() -> None:
    image = draw(stage("publish", 4.2, 4.8), event(REPLICA, "writes", 0, 3))
    assert pixel(image, 1, 4.5) == ImageColor.getrgb(BAND) and pixel(image, 0, 4.5) == colour("publish")


def test_a_row_with_many_at_once_shows_how_many() -> None:
    num = 2 * MOST_LANES
    image = draw(*(event(REPLICA, "writes", i / 2, 9.9, lane=i) for i in range(num)))
    # Half of them have begun when half of the time is over that they begin in.
    assert pixel(image, 1, num / 4 + 0.1, height=0.75) == colour("writes")
    assert pixel(image, 1, num / 4 + 0.1, height=0.2) == (255, 255, 255)
    assert pixel(image, 1, 9.5, height=0.2) == colour("writes")


def test_more_replicas_than_the_page_holds_share_a_row() -> None:
    def page(num: int) -> Image.Image:
        return draw(*(event(f"replica http://10.0.0.{i}:1", "writes", 0, 9, lane=0) for i in range(num)))

    assert page(MOST_ROWS + 50).height == page(MOST_ROWS + 5).height == page(MOST_ROWS - 1).height


def test_a_window_without_any_event_is_drawn_too() -> None:
    assert draw().size[0] == WIDTH
    assert draw_timeline(Window([], [], 3.0, 3.0)).size[0] == WIDTH


def test_the_worst_waits_are_the_longest_of_each_sort_and_idling_before_work() -> None:
    events = [
        stage("wait", 0, 100),
        event(REPLICA, "writes", 0, 50),
        event(REPLICA, "has no room", 2, 3),
        event("replica http://b", "has no room", 2, 5),
        event("genrm http://g", "judges", 0, 80),
        for_group(3, 0, 7),
        event("fleet", "a push is under way", 200, 300),
        event("disk", "does not answer", -50, 0.5),
    ]
    found = worst_waits(events, 0, 100)
    assert [(wait.row, wait.reason) for wait in found] == [
        ("genrm http://g", "judges"), (DRIVER, "is in the making"), ("replica http://b", "has no room")
    ]  # fmt: skip


def test_a_wait_for_a_group_says_what_that_group_waited_for() -> None:
    wait = for_group(3, 60, 72)
    others = [
        event(REPLICA, "writes", 55, 62, who="group 3"),
        event("genrm http://g:9", "judges", 62, 71.5, who="group 3"),
        event("genrm http://h:9", "judges", 60, 72, who="group 4"),
    ]
    assert in_words(wait, [wait, *others]) == (
        "12.0 s from 0:01:00: driver waits: group 3 is in the making; for it genrm g:9 judges, 9.5 s"
    )
    assert in_words(wait, [wait]) == "12.0 s from 0:01:00: driver waits: group 3 is in the making"
    assert in_words(others[0], []) == "7.0 s from 55.0 s: group 3 waits for replica 10.0.0.1:8000: writes"


@pytest.mark.parametrize("num_steps", [0, 1, 2, 300])
def test_curves_are_drawn_of_any_number_of_steps(num_steps: int) -> None:
    curves = {name: [(float(step), step / 7) for step in range(1, num_steps + 1)] for name in METRICS}
    curves["objective/kl"] = []  # not measured
    scores = draw_curves(curves.__getitem__).crop((0, 0, WIDTH // 3, 300))
    colours = scores.getcolors(maxcolors=2**20)
    assert colours is not None
    assert (ImageColor.getrgb("#2563eb") in [found for _, found in colours]) == (num_steps > 0)


def test_words_are_shortened_in_their_middle_to_fit() -> None:
    words = "replica a-host-with-a-very-long-name.example.org:8000"
    short = elided(words, 150)
    assert words_width(short) <= 150 and short.startswith("replica") and short.endswith(":8000") and "…" in short
    assert elided("driver", 150) == "driver"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.13, 0.98, [0.2, 0.4, 0.6, 0.8]), (100, 1100, [200, 400, 600, 800, 1000])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(expected)
    assert ticks(low, low, 5) == [low]


class Shown:
    """What TensorBoard would be shown, and by which thread."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int, str]] = []

    def __call__(self, name: str, image: Any, step: int) -> None:
        self.found.append((name, step, threading.current_thread().name))


async def pictures_of(folder: Path, shown: Any, *, steps: int, every: int, first_step: int = 0) -> None:
    waits = Waits()
    with Trace(folder, limit_bytes=0, waits=waits) as trace:
        pictures = Pictures(folder, first_step=first_step, every=every, trace=trace, show=shown)
        for step in range(first_step + 1, steps + 1):
            with waits.on(REPLICA, "writes", who="group 1"):
                await asyncio.sleep(0)
            pictures.note(step, {"objective/scores": float(step), "no/curve": 1.0})
            if pictures._drawing is not None:
                await asyncio.wrap_future(pictures._drawing)  # so that none is left out
        await pictures.finish()


async def test_they_are_drawn_every_so_many_steps_and_at_the_end_off_the_loop(tmp_path: Path) -> None:
    await pictures_of(tmp_path, shown := Shown(), steps=5, every=2)
    assert [(name, step) for name, step, _ in shown.found] == [
        (f"pictures/{name}", step) for step in (2, 4, 5) for name in ("timeline", "curves")
    ]
    assert all(thread.startswith("pictures") for *_, thread in shown.found)
    folder = tmp_path / "pictures"
    assert sorted(path.name for path in folder.iterdir()) == ["curves.json", "curves.png", "timeline.png"]
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG" and image.width == WIDTH


async def test_the_end_adds_no_picture_where_the_last_step_has_one(tmp_path: Path) -> None:
    await pictures_of(tmp_path, shown := Shown(), steps=4, every=2)
    assert [step for name, step, _ in shown.found if name == "pictures/curves"] == [2, 4]


async def test_none_are_drawn_where_none_are_asked_for_or_nothing_happened(tmp_path: Path) -> None:
    await pictures_of(tmp_path, shown := Shown(), steps=3, every=0)
    await pictures_of(tmp_path, shown, steps=3, every=1, first_step=3)
    assert shown.found == [] and not (tmp_path / "pictures").exists()


async def test_a_picture_that_cannot_be_drawn_is_said_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str, image: Any, step: int) -> None:
        raise OSError("disk full")

    waits = Waits()
    with caplog.at_level(logging.WARNING), Trace(tmp_path, limit_bytes=0, waits=waits) as trace:
        pictures = Pictures(tmp_path, first_step=0, every=5, trace=trace, show=broken)
        pictures.note(1, {})
        await pictures.finish()
    assert "no pictures of the last steps: OSError: disk full" in caplog.text


async def test_a_picture_that_is_still_being_drawn_is_not_waited_for(tmp_path: Path) -> None:
    may_go_on, shown = threading.Event(), Shown()

    def slow(name: str, image: Any, step: int) -> None:
        assert may_go_on.wait(60)
        shown(name, image, step)

    with Trace(tmp_path, limit_bytes=0, waits=Waits()) as trace:
        pictures = Pictures(tmp_path, first_step=0, every=1, trace=trace, show=slow)
        for step in (1, 2, 3):
            pictures.note(step, {})
        may_go_on.set()
        await pictures.finish()
    assert [step for name, step, _ in shown.found if name == "pictures/curves"] == [1, 3]
