"""Grafana's colours for what the boards' colours mean: names of its palette, which it darkens and lightens itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cutlayer.dashboards.panels import Colour

__all__ = ["COLOURS"]

COLOURS: Final[Mapping[Colour, str]] = {
    "up": "blue",
    "down": "orange",
    "good": "green",
    "bad": "red",
    "warn": "yellow",
    "neutral": "purple",
    "raw": "super-light-blue",
    "payload": "light-blue",
    "wire": "dark-blue",
}
