"""What a panel asks of the metrics: written once, sent to Prometheus as PromQL, and answered here without one.

A query is a small tree. `promql` writes it for Grafana, with the dashboards' variables; `snapshots` answers it from a
few snapshots that the worker, or whoever watches it, keeps in memory. So the worker's own page, `cutlayer top` and
Grafana cannot disagree about what a panel shows. Both follow the same rules:

- a rate is per second over the last `$__rate_interval`, here the snapshots of the last `Snapshots.rate_s`;
- workers are put together as the catalogue says (`Across`): first each worker's own series, then sum or maximum;
- what has no data, or would divide by zero, is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "Buckets",
    "Increase",
    "Mean",
    "Minus",
    "Quantile",
    "Query",
    "Rate",
    "Ratio",
    "Selection",
    "Times",
    "Top",
    "Value",
    "Within",
    "Written",
    "metrics_of",
]


@dataclass(frozen=True, slots=True)
class Selection:
    """Series of one metric.

    Attributes:
        name: The metric.
        by: Labels to keep; the others are put together.
        where: Label values wanted: one, or any of several.
        variables: Labels that a variable of the dashboard restricts, and the variable. Only Grafana has them.
        unless: Label values that are not wanted.
    """

    name: str
    by: tuple[str, ...] = ()
    where: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    unless: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Value(Selection):
    """A gauge, or a counter's total, as it is now."""


@dataclass(frozen=True, slots=True)
class Rate(Selection):
    """A counter's increase per second."""


@dataclass(frozen=True, slots=True)
class Increase(Selection):
    """A counter's increase over the time range that is shown (`$__range`); here since the first snapshot kept."""


@dataclass(frozen=True, slots=True)
class Mean(Selection):
    """A histogram's mean."""


@dataclass(frozen=True, slots=True)
class Quantile(Selection):
    """A histogram's quantile.

    Attributes:
        share: Such as 0.95.
    """

    share: float = 0.5


@dataclass(frozen=True, slots=True)
class Buckets(Selection):
    """A histogram's buckets, for a heatmap: values per second up to each bound, which is the last label kept."""


@dataclass(frozen=True, slots=True)
class Within(Selection):
    """The share of a histogram's values up to one of its bounds.

    Attributes:
        bound: The bound.
        variable: A variable of the dashboard that takes the bound's place in Grafana.
    """

    bound: float = 1.0
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """PromQL as it stands, for series that only Prometheus has (`process_*`, `up`, `ALERTS`): no snapshot answers it.

    Attributes:
        text: The query; `MATCHERS` and `WINDOW` stand for what other selectors have.
        names: The metrics that it reads, as the catalogue or Prometheus' client library calls them.
    """

    text: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """One query by another, group by group; absent where the divisor is not above 0."""

    above: Query
    below: Query


@dataclass(frozen=True, slots=True)
class Minus:
    """The difference of two queries."""

    first: Query
    second: Query


@dataclass(frozen=True, slots=True)
class Times:
    """A query times a number; `variable`, a text variable of the dashboard, takes the number's place in Grafana."""

    query: Query
    factor: float
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Top:
    """The largest few."""

    query: Query
    count: int


Query = Value | Rate | Increase | Mean | Quantile | Buckets | Within | Written | Ratio | Minus | Times | Top


def metrics_of(query: Query) -> set[str]:
    """Return the names of the metrics that a query reads."""
    match query:
        case Ratio():
            return metrics_of(query.above) | metrics_of(query.below)
        case Minus():
            return metrics_of(query.first) | metrics_of(query.second)
        case Times() | Top():
            return metrics_of(query.query)
        case Written():
            return set(query.names)
        case _:
            return {query.name}
