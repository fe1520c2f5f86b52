"""`<output_dir>/pictures/`: `timeline.png`, the last steps of the trace, and `curves.png`, the run so far.

Drawn in a thread of their own, one pair at a time: where one is still being drawn when the next is due, that is left
out. What a picture costs does not grow with the run: the window has so many events at the most, a curve so many points.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainer.curves import METRICS, Curve, draw_curves
from trainer.history import History
from trainer.timeline import Window, draw_timeline
from trainer.trace import Trace

FOLDER = "pictures"
WINDOW_STEPS = 3  # that the timeline shows

Show = Callable[[str, Any, int], None]  # a name, the picture, the step


class Pictures:
    """Draws the pictures of one run every so many steps, and at its end.

    Args:
        folder: the run's output_dir.
        first_step: steps done before, by the run that is resumed.
        every: steps between two pictures; 0: none are drawn.
        trace: what the timeline shows.
        show: told of each picture besides, in the drawing thread.
    """

    def __init__(self, folder: Path, *, first_step: int, every: int, trace: Trace, show: Show) -> None:
        self._folder, self._every, self._trace, self._show = folder / FOLDER, every, trace, show
        self._history = History(self._folder / "curves.json", first_step)
        self._ends: deque[tuple[int, float]] = deque(maxlen=WINDOW_STEPS + 1)  # steps, and when they ended
        self._begun = trace.since_start(asyncio.get_running_loop().time())
        self._step = self._drawn = first_step
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pictures")
        self._drawing: Future[None] | None = None

    def note(self, step: int, metrics: dict[str, float]) -> None:
        """A step has ended."""
        self._step = step
        self._ends.append((step, self._trace.since_start(asyncio.get_running_loop().time())))
        if not self._every:
            return
        self._history.add(step, {name: metrics[name] for name in METRICS if name in metrics})
        if step % self._every == 0:
            self._draw()

    async def finish(self) -> None:
        """Draw what has come since the last pictures, and wait for them."""
        if self._every and self._step > self._drawn:
            await self._drawn_all()
            self._draw()
        await self._drawn_all()
        self._look_back()
        self._thread.shutdown(wait=False)

    async def _drawn_all(self) -> None:
        if self._drawing is not None:
            await asyncio.gather(asyncio.wrap_future(self._drawing), return_exceptions=True)

    def _draw(self) -> None:
        if self._drawing is not None and not self._drawing.done():
            return
        self._look_back()
        self._drawn = self._step
        now = asyncio.get_running_loop().time()
        end = self._trace.since_start(now)
        first = self._ends[0][1] if len(self._ends) > WINDOW_STEPS else self._begun
        start = max(first, self._trace.complete_from)
        # Copies, for the run goes on while they are drawn.
        window = Window(self._trace.window(start, now), list(self._ends), start, end)
        curves: dict[str, Curve] = {name: self._history.curve(name) for name in METRICS}
        self._folder.mkdir(parents=True, exist_ok=True)
        self._history.save()
        self._drawing = self._thread.submit(self._make, self._step, window, curves)

    def _make(self, step: int, window: Window, curves: dict[str, Curve]) -> None:
        for name, image in (("timeline", draw_timeline(window)), ("curves", draw_curves(curves.__getitem__))):
            aside = self._folder / f".{name}.partial"
            image.save(aside, format="PNG")
            aside.rename(self._folder / f"{name}.png")
            self._show(f"pictures/{name}", image, step)

    def _look_back(self) -> None:
        """Pictures that failed are no reason to end a run, and must be heard of."""
        if self._drawing is not None and (error := self._drawing.exception()) is not None:
            logging.getLogger(__name__).warning("no pictures of the last steps: %s: %s", type(error).__name__, error)
        self._drawing = None
