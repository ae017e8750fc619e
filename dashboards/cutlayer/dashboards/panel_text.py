"""A panel's values and legends as text, for drawers that have no formatter of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from cutlayer.dashboards.panels import Panel, Target, Unit
from cutlayer.dashboards.query import Minus, Query, Ratio, Times, Top, Written
from cutlayer.dashboards.snapshots import Group
from cutlayer.dashboards.units import bytes_text, latency_text

__all__ = ["group_labels", "labels_of", "legend_text", "panel_text", "value_text"]

_LABEL: Final = re.compile(r"\{\{(\w+)\}\}")


def labels_of(query: Query) -> tuple[str, ...]:
    """Return the names of the labels that a query keeps, in the order of its groups."""
    match query:
        case Ratio():
            return labels_of(query.above)
        case Minus():
            return labels_of(query.first)
        case Times() | Top():
            return labels_of(query.query)
        case Written():
            return ()
        case _:
            return query.by


def group_labels(query: Query, group: Group) -> Mapping[str, str]:
    """Return the label values of a group by name."""
    return dict(zip(labels_of(query), group, strict=True))


def legend_text(target: Target, group: Group) -> str:
    """Return the name of a group's line: the legend with the group's label values in it."""
    labels = group_labels(target.query, group)
    return _LABEL.sub(lambda match: labels.get(match[1], match[0]), target.legend)


def panel_text(panel: Panel, value: float) -> str:
    """Return a value as a panel shows it."""
    return value_text(value, panel.unit, panel.decimals)


def value_text(value: float, unit: Unit, decimals: int | None = None) -> str:
    """Return a value with its unit, in few digits.

    Args:
        value: In the base unit; a share of one for `Unit.SHARE`.
        unit: Its unit.
        decimals: Digits after the point, for units without a prefix; None for as many as tell something.
    """
    match unit:
        case Unit.BYTES:
            return bytes_text(value)
        case Unit.BYTES_PER_SECOND:
            return f"{bytes_text(value)}/s"
        case Unit.SECONDS:
            return latency_text(value)
        case Unit.SHARE:
            return f"{value * 100:.{1 if decimals is None else decimals}f} %"
        case Unit.PER_SECOND:
            return f"{_number(value, decimals)}/s"
        case Unit.TIMES:
            return f"{_number(value, decimals)}x"
        case Unit.MONEY:
            return f"${value:,.2f}"
        case Unit.SCIENTIFIC:
            return f"{value:.2e}"
        case Unit.COUNT | Unit.PLAIN:
            return _number(value, decimals)


def _number(value: float, decimals: int | None) -> str:
    if decimals is None:
        decimals = 0 if value == int(value) or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{decimals}f}"
