"""A page to draw on: rectangles, lines and words in pixels from the top left. Pillow, with its own font.

Everything is drawn at twice the size and scaled down, so edges are smooth. Pillow is loaded with the first picture, by
whoever draws it: not by the driver's loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageFont

SCALE = 2
INK, PALE, RULE, PAPER = "#1f2430", "#6b7280", "#d5d9e0", "#ffffff"


@lru_cache
def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size * SCALE)


def words_width(words: str, size: float = 13) -> float:
    """Pixels that the words take."""
    return _font(size).getlength(words) / SCALE


def elided(words: str, width: float, size: float = 13) -> str:
    """The words as far as they fit into `width` pixels, without their middle where they do not."""
    keep = len(words)
    short = words
    while words_width(short, size) > width and keep > 2:
        keep -= 1
        short = f"{words[: (keep + 1) // 2].rstrip()}…{words[len(words) - keep // 2 :].lstrip()}"
    return short


class Canvas:
    """One picture.

    Args:
        width, height: in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.width, self.height = width, height
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def box(self, left: float, top: float, right: float, bottom: float, fill: str) -> None:
        """A filled rectangle, at least a third of a pixel wide so that it is seen."""
        right, bottom = max(right, left + 1 / 3), max(bottom, top + 1 / 3)
        corners = (left * SCALE, top * SCALE, right * SCALE - 1, bottom * SCALE - 1)
        self._draw.rectangle((*corners[:2], max(corners[0], corners[2]), max(corners[1], corners[3])), fill=fill)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        """A line through the points."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=max(1, round(width * SCALE)), joint="curve")

    def area(self, points: Sequence[tuple[float, float]], fill: str) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: str, outline: str = PAPER) -> None:
        """A filled circle."""
        corners = ((x - radius) * SCALE, (y - radius) * SCALE, (x + radius) * SCALE, (y + radius) * SCALE)
        self._draw.ellipse(corners, fill=fill, outline=outline, width=SCALE)

    def words(self, x: float, y: float, words: str, colour: str = INK, size: float = 13, anchor: str = "lm") -> None:
        """Words at a point; `anchor` is Pillow's: l, m, r and t, m, b."""
        self._draw.text((x * SCALE, y * SCALE), words, fill=colour, font=_font(size), anchor=anchor)

    def image(self) -> Image.Image:
        """The picture at its size."""
        return self._image.reduce(SCALE)


def ticks(low: float, high: float, num: int) -> list[float]:
    """About `num` round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, num)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number for an axis."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
