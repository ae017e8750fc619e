"""Grafana's colours for what the boards' colours mean: names of its palette, which it darkens and lightens itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cutlayer.dashboards.metric_labels import AGENT_STAGES, Stage
from cutlayer.dashboards.panels import Colour

__all__ = ["COLOURS", "STAGE_COLOURS"]

COLOURS: Final[Mapping[Colour, str]] = {
    "up": "orange",
    "down": "blue",
    "good": "green",
    "bad": "red",
    "warn": "yellow",
    "neutral": "purple",
    "raw": "super-light-blue",
    "payload": "light-blue",
    "wire": "dark-blue",
}

_AT_AGENTS: Final = ("light-purple", "purple", "blue", "super-light-purple")
_AT_WORKER: Final = (
    "yellow", "light-orange", "green", "super-light-green", "dark-green", "orange", "dark-red",
)  # fmt: skip
STAGE_COLOURS: Final[Mapping[str, str]] = {
    **dict(zip((stage.value for stage in AGENT_STAGES), _AT_AGENTS, strict=True)),
    **dict(zip((stage.value for stage in Stage if stage not in AGENT_STAGES), _AT_WORKER, strict=True)),
}
"""Agents' stages are purple and blue, the worker's warm and green; waiting is yellow and orange."""
