"""What a panel is, whoever draws it: Grafana, the worker's own page, or a terminal.

A panel is a title, a unit, a description and queries; a board is a page of them. `*_board.py` have the boards,
`grafana*.py` turn them into dashboards.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from cutlayer.dashboards.query import Query, metrics_of

__all__ = ["Board", "Colour", "Panel", "Row", "Shape", "Target", "Threshold", "Unit"]


class Unit(StrEnum):
    """Units, by Grafana's names of them."""

    BYTES = "decbytes"
    BYTES_PER_SECOND = "Bps"
    SECONDS = "s"
    SHARE = "percentunit"
    COUNT = "short"
    PLAIN = "none"
    PER_SECOND = "cps"
    TIMES = "suffix:x"
    MONEY = "currencyUSD"
    SCIENTIFIC = "sci"


class Shape(StrEnum):
    """How a panel is drawn."""

    NUMBER = "number"
    LINES = "lines"
    STACK = "stack"
    BARS = "bars"
    """The last value of each group, as bars beside each other's names."""
    HEATMAP = "heatmap"
    AGAINST = "against"
    """The other targets' values against the first one's."""
    TABLE = "table"
    """A line for each group, a column for each target."""


Colour = Literal["up", "down", "good", "bad", "warn", "neutral", "raw", "payload", "wire"]
"""A meaning, not a colour: each drawer has one colour for it, light and dark."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """From this value on, a number has this meaning."""

    value: float
    colour: Colour


@dataclass(frozen=True, slots=True)
class Target:
    """One query of a panel.

    Attributes:
        query: The query.
        legend: Name of its line; `{{label}}` stands for the value of a label that the query keeps.
        colour: What it means, or empty for a colour of the drawer's own choice.
        is_below: Whether it is drawn downwards.
        unit: Of its column, in a table; None for the panel's.
    """

    query: Query
    legend: str
    colour: Colour | Literal[""] = ""
    is_below: bool = False
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: A few words.
        description: What is shown and what to make of it; the drawer adds the names of the metrics.
        unit: Of its values.
        shape: How it is drawn.
        targets: At least one.
        width: Of 24 columns.
        height: In rows of Grafana's grid.
        thresholds: For numbers.
        decimals: Digits after the point; None for the drawer's choice.
        empty_text: What it says where nothing can be there: no pool, no $SYS.
    """

    title: str
    description: str
    unit: Unit
    shape: Shape
    targets: tuple[Target, ...]
    width: int = 12
    height: int = 8
    thresholds: tuple[Threshold, ...] = ()
    decimals: int | None = None
    empty_text: str = ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that it reads, sorted."""
        return tuple(sorted({name for target in self.targets for name in metrics_of(target.query)}))


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading; an empty title stands for none."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A page of panels.

    Attributes:
        uid: Stable name, for addresses.
        title: Of the page.
        description: What question it answers.
        rows: Top to bottom.
    """

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, top to bottom."""
        return tuple(panel for row in self.rows for panel in row.panels)
