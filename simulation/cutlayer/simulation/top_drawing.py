"""Bars, sparklines and blocks of lines for a terminal, of a known width, so that they can stand side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.text import Text

from cutlayer.dashboards.panels import Colour

__all__ = ["STYLES", "Glyphs", "bar", "beside", "columns", "fitted", "sparkline"]

STYLES: Final[dict[Colour, str]] = {
    "up": "dark_orange",
    "down": "dark_cyan",
    "good": "green",
    "bad": "red",
    "warn": "yellow",
    "neutral": "",
    "raw": "bright_black",
    "payload": "blue",
    "wire": "magenta",
}
"""A terminal's colour for each meaning; never the only sign of it, since there may be none (NO_COLOR)."""


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What bars and lines are made of: from nothing to full."""

    sparks: str
    eighths: str

    @classmethod
    def of(cls, *, ascii_only: bool) -> Glyphs:
        """Return those that a terminal can show."""
        return cls("_.:-=+*#", "#") if ascii_only else cls("▁▂▃▄▅▆▇█", "▏▎▍▌▋▊▉█")


def bar(share: float, width: int, glyphs: Glyphs) -> str:
    """Return a bar of a share of the width; whatever is above 0 can be seen."""
    steps = len(glyphs.eighths)
    filled = min(max(share, 0.0), 1.0) * width * steps
    whole, rest = divmod(math.ceil(filled), steps)
    return glyphs.eighths[-1] * whole + (glyphs.eighths[rest - 1] if rest else "")


def sparkline(values: Sequence[float | None], width: int, largest: float, glyphs: Glyphs) -> str:
    """Return the last values as a line from 0 to `largest`, newest at the right; gaps stay empty."""
    shown = list(values)[-width:]
    steps = len(glyphs.sparks)
    marks = [
        " "
        if value is None
        else glyphs.sparks[min(int(value / largest * steps), steps - 1) if largest > 0 and value > 0 else 0]
        for value in shown
    ]
    return "".join(marks).rjust(width)


def fitted(text: Text, width: int) -> Text:
    """Return a text cut or filled up to exactly so many cells."""
    line = text.copy()
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis", pad=True)
    return line


def beside(blocks: Sequence[Sequence[Text]], width: int, gap: int) -> list[Text]:
    """Return blocks side by side, each so many cells wide."""
    lines = []
    for index in range(max(map(len, blocks), default=0)):
        cells = [fitted(block[index] if index < len(block) else Text(), width) for block in blocks]
        line = Text(" " * gap).join(cells)
        line.rstrip()
        lines.append(line)
    return lines


def columns(blocks: Sequence[Sequence[Text]], count: int) -> list[list[Text]]:
    """Return blocks in columns, each block below the shortest column so far and an empty line between them."""
    filled: list[list[Text]] = [[] for _ in range(count)]
    for block in blocks:
        shortest = min(filled, key=len)
        if shortest:
            shortest.append(Text())
        shortest += block
    return filled
