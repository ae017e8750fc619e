"""What a panel asks of the metrics: written once, sent to Prometheus as PromQL, and answered here without one.

A query is a small tree. `promql` writes it for Grafana, with the dashboards' variables; `evaluate` answers it from a
few snapshots that the worker, or whoever watches it, keeps in memory. So the worker's own page, `cutlayer top` and
Grafana cannot disagree about what a panel shows. Both follow the same rules:

- a rate is per second over the last `$__rate_interval`, here the snapshots of the last `Snapshots.rate_s`;
- workers are put together as the catalogue says (`Across`): first each worker's own series, then sum or maximum;
- what has no data, or would divide by zero, is absent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cutlayer.dashboards.catalogue import AGENT_METRICS, Across, Kind, Metric, metric
from cutlayer.dashboards.metric_store import Distribution, MetricStore, SeriesKey

__all__ = [
    "Buckets",
    "Group",
    "Increase",
    "Mean",
    "Minus",
    "Quantile",
    "Query",
    "Rate",
    "Ratio",
    "Snapshot",
    "Snapshots",
    "Times",
    "Top",
    "Value",
    "Within",
    "Written",
    "evaluate",
    "metrics_of",
    "promql",
]

Group = tuple[str, ...]
"""Values of the labels that a query keeps, in their order."""
RATE_WINDOW: Final = "$__rate_interval"
MATCHERS: Final = 'job=~"$job",instance=~"$worker"'
"""Of every selector in a dashboard."""
AGENT_MATCHERS: Final = 'instance=~"$worker"'
"""Of selectors of `AGENT_METRICS`, which are scraped by a job of their own, less often."""

_AGENT_NAMES: Final = frozenset(entry.name for entry in AGENT_METRICS)


@dataclass(frozen=True, slots=True)
class _Selection:
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
class Value(_Selection):
    """A gauge, or a counter's total, as it is now."""


@dataclass(frozen=True, slots=True)
class Rate(_Selection):
    """A counter's increase per second."""


@dataclass(frozen=True, slots=True)
class Increase(_Selection):
    """A counter's increase over the time range that is shown (`$__range`); here since the first snapshot kept."""


@dataclass(frozen=True, slots=True)
class Mean(_Selection):
    """A histogram's mean."""


@dataclass(frozen=True, slots=True)
class Quantile(_Selection):
    """A histogram's quantile.

    Attributes:
        share: Such as 0.95.
    """

    share: float = 0.5


@dataclass(frozen=True, slots=True)
class Buckets(_Selection):
    """A histogram's buckets, for a heatmap: values per second up to each bound, which is the last label kept."""


@dataclass(frozen=True, slots=True)
class Within(_Selection):
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


# PromQL -------------------------------------------------------------------------------------------------------


def promql(query: Query, *, matchers: str = MATCHERS, window: str = RATE_WINDOW, span: str = "$__range") -> str:
    """Write a query as PromQL.

    Args:
        query: The query.
        matchers: Label matchers of every selector; may be empty.
        window: Range of rates.
        span: Range of increases.
    """

    def write(part: Query) -> str:
        return promql(part, matchers=matchers, window=window, span=span)

    match query:
        case Value():
            return _aggregate(query, _selector(query, query.name, matchers))
        case Rate():
            return _aggregate(query, f"rate({_selector(query, query.name, matchers)}[{window}])")
        case Increase():
            return _aggregate(query, f"increase({_selector(query, query.name, matchers)}[{span}])")
        case Mean():
            sums, counts = (
                _aggregate(query, f"rate({_selector(query, query.name + end, matchers)}[{window}])")
                for end in ("_sum", "_count")
            )
            return f"{sums} / ({counts} > 0)"
        case Quantile():
            buckets = f"rate({_selector(query, query.name + '_bucket', matchers)}[{window}])"
            return f"histogram_quantile({query.share:g}, {_aggregate(query, buckets, extra=('le',))})"
        case Buckets():
            return _aggregate(
                query, f"rate({_selector(query, query.name + '_bucket', matchers)}[{window}])", extra=("le",)
            )
        case Within():
            bound = f"${query.variable}" if query.variable and matchers else repr(float(query.bound))
            below = _selector(
                query, query.name + "_bucket", ",".join(part for part in (matchers, f'le="{bound}"') if part)
            )
            count = _selector(query, query.name + "_count", matchers)
            return (
                f"{_aggregate(query, f'rate({below}[{window}])')} / "
                f"({_aggregate(query, f'rate({count}[{window}])')} > 0)"
            )
        case Written():
            return query.text.replace("MATCHERS", matchers).replace("WINDOW", window)
        case Ratio():
            return f"({write(query.above)}) / ({write(query.below)} > 0)"
        case Minus():
            return f"({write(query.first)}) - ({write(query.second)})"
        case Times():
            return f"({write(query.query)}) * {f'${query.variable}' if query.variable else f'{query.factor:g}'}"
        case Top():
            return f"topk({query.count}, {write(query.query)})"


def _aggregate(query: _Selection, inner: str, extra: tuple[str, ...] = ()) -> str:
    labels = (*extra, *query.by)
    entry = metric(query.name)
    by = f" by ({', '.join(labels)})" if labels else ""
    if entry.across is Across.SUM:
        return f"sum{by} ({inner})"
    # Each worker's series first: a maximum over series of one worker would be no number of anything.
    return f"max{by} (sum by (instance{''.join(f', {label}' for label in labels)}) ({inner}))"


def _selector(query: _Selection, name: str, matchers: str) -> str:
    parts = [AGENT_MATCHERS if matchers and query.name in _AGENT_NAMES else matchers] if matchers else []
    for label, wanted in query.where.items():
        if isinstance(wanted, str):
            parts.append(f'{label}="{wanted}"')
        else:
            parts.append(f'{label}=~"{"|".join(wanted)}"')
    parts += [f'{label}!="{unwanted}"' for label, unwanted in query.unless.items()]
    if matchers:
        parts += [f'{label}=~"${variable}"' for label, variable in query.variables.items()]
    return f"{name}{{{','.join(parts)}}}" if parts else name


# Without Prometheus -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All values of some workers at one time.

    Attributes:
        at: Seconds, monotonic.
        numbers: Counters and gauges by worker and series.
        distributions: Histograms, likewise.
    """

    at: float
    numbers: Mapping[str, Mapping[SeriesKey, float]]
    distributions: Mapping[str, Mapping[SeriesKey, Distribution]]

    @classmethod
    def of(cls, at: float, stores: Mapping[str, MetricStore]) -> Snapshot:
        """Take the values of stores as they are now."""
        return cls(
            at,
            {worker: store.numbers() for worker, store in stores.items()},
            {worker: store.distributions() for worker, store in stores.items()},
        )


class Snapshots:
    """The last few snapshots, for rates.

    Args:
        rate_s: Seconds that a rate looks back.
    """

    def __init__(self, rate_s: float = 15.0) -> None:
        self.rate_s = rate_s
        self._kept: deque[Snapshot] = deque()
        self._first: Snapshot | None = None

    def add(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, and forget those that no rate needs."""
        self._first = self._first or snapshot
        self._kept.append(snapshot)
        while len(self._kept) > 2 and self._kept[1].at <= snapshot.at - self.rate_s:
            self._kept.popleft()

    @property
    def latest(self) -> Snapshot | None:
        """The last one, or None."""
        return self._kept[-1] if self._kept else None

    @property
    def earliest(self) -> Snapshot | None:
        """The oldest one within `rate_s`, or None."""
        return self._kept[0] if self._kept else None

    @property
    def first(self) -> Snapshot | None:
        """The first one of all, or None."""
        return self._first


def evaluate(query: Query, snapshots: Snapshots) -> dict[Group, float]:
    """Answer a query.

    Args:
        query: The query.
        snapshots: The values now and a while ago.

    Returns:
        A value for each group of the labels that the query keeps; groups without one are absent.
    """
    match query:
        case Value():
            return _value(query, snapshots)
        case Rate():
            return _rate(query, snapshots)
        case Increase():
            return _increase(query, snapshots)
        case Mean():
            merged = _distributions(query, snapshots)
            return {group: each.total / each.count for group, each in merged.items() if each.count}
        case Quantile():
            merged = _distributions(query, snapshots)
            return {group: each.quantile(query.share) for group, each in merged.items() if each.count}
        case Buckets():
            return _buckets(query, snapshots)
        case Within():
            merged = _distributions(query, snapshots)
            return {group: _share(each, query.bound) for group, each in merged.items() if each.count}
        case Written():
            return {}
        case Ratio():
            above, below = evaluate(query.above, snapshots), evaluate(query.below, snapshots)
            return {group: above[group] / below[group] for group in above if below.get(group, 0.0) > 0}
        case Minus():
            first, second = evaluate(query.first, snapshots), evaluate(query.second, snapshots)
            return {group: first[group] - second[group] for group in first if group in second}
        case Times():
            return {group: value * query.factor for group, value in evaluate(query.query, snapshots).items()}
        case Top():
            largest = sorted(evaluate(query.query, snapshots).items(), key=lambda item: (-item[1], item[0]))
            return dict(largest[: query.count])


def _value(query: _Selection, snapshots: Snapshots) -> dict[Group, float]:
    latest = snapshots.latest
    if latest is None:
        return {}
    return _across(query, {worker: _sums(query, numbers) for worker, numbers in latest.numbers.items()})


def _rate(query: _Selection, snapshots: Snapshots) -> dict[Group, float]:
    latest, earliest = snapshots.latest, snapshots.earliest
    if latest is None or earliest is None or latest.at <= earliest.at:
        return {}
    increases = _increases(query, earliest, latest)
    return {group: value / (latest.at - earliest.at) for group, value in _across(query, increases).items()}


def _increase(query: _Selection, snapshots: Snapshots) -> dict[Group, float]:
    latest, first = snapshots.latest, snapshots.first
    if latest is None or first is None or latest is first:
        return {}
    return _across(query, _increases(query, first, latest))


def _increases(query: _Selection, earlier: Snapshot, later: Snapshot) -> dict[str, dict[Group, float]]:
    found: dict[str, dict[Group, float]] = {}
    for worker, numbers in later.numbers.items():
        before = earlier.numbers.get(worker)
        if before is None:
            continue
        grown = {}
        for key, value in numbers.items():
            if key[0] == query.name:
                # A series that has just come has counted from 0, but for one that another program counts, and for an
                # agent that was not among those listed.
                is_older = query.name in _AGENT_NAMES or metric(query.name).is_counted_elsewhere
                start = before.get(key, value if is_older else 0.0)
                grown[key] = value - start if value >= start else value
        found[worker] = _sums(query, grown)
    return found


def _distributions(query: _Selection, snapshots: Snapshots) -> dict[Group, Distribution]:
    """Return the histogram of the last `rate_s` for each group, all workers together."""
    latest, earliest = snapshots.latest, snapshots.earliest
    if latest is None or earliest is None or latest is earliest:
        return {}
    entry = metric(query.name)
    assert entry.kind is Kind.HISTOGRAM, f"{query.name} is no histogram"
    merged: dict[Group, Distribution] = {}
    for worker, distributions in latest.distributions.items():
        before = earliest.distributions.get(worker)
        if before is None:
            continue
        for key, now in distributions.items():
            group = _group(query, entry, key)
            if group is None:
                continue
            then = before.get(key) or Distribution(now.bounds)
            if now.count < then.count:
                then = Distribution(now.bounds)
            sums = merged.setdefault(group, Distribution(now.bounds))
            sums.total += now.total - then.total
            for index, (new, old) in enumerate(zip(now.counts, then.counts, strict=True)):
                sums.counts[index] += new - old
    return merged


def _buckets(query: _Selection, snapshots: Snapshots) -> dict[Group, float]:
    latest, earliest = snapshots.latest, snapshots.earliest
    found: dict[Group, float] = {}
    for group, each in _distributions(query, snapshots).items():
        assert latest is not None
        assert earliest is not None
        seen = 0
        for bound, count in zip((*map(repr, each.bounds), "+Inf"), each.counts, strict=True):
            seen += count
            found[*group, bound] = seen / (latest.at - earliest.at)
    return found


def _share(distribution: Distribution, bound: float) -> float:
    within = sum(
        count for upper, count in zip(distribution.bounds, distribution.counts, strict=False) if upper <= bound
    )
    return within / distribution.count


def _sums(query: _Selection, numbers: Mapping[SeriesKey, float]) -> dict[Group, float]:
    entry = metric(query.name)
    sums: dict[Group, float] = {}
    for key, value in numbers.items():
        group = _group(query, entry, key)
        if group is not None:
            sums[group] = sums.get(group, 0.0) + value
    return sums


def _group(query: _Selection, entry: Metric, key: SeriesKey) -> Group | None:
    """Return the group of a series, or None where the query does not want it."""
    if key[0] != query.name:
        return None
    labels = dict(zip(entry.labels, key[1], strict=True))
    for label, wanted in query.where.items():
        if labels[label] not in ((wanted,) if isinstance(wanted, str) else wanted):
            return None
    if any(labels[label] == unwanted for label, unwanted in query.unless.items()):
        return None
    return tuple(labels[label] for label in query.by)


def _across(query: _Selection, by_worker: Mapping[str, Mapping[Group, float]]) -> dict[Group, float]:
    is_sum = metric(query.name).across is Across.SUM
    merged: dict[Group, float] = {}
    for groups in by_worker.values():
        for group, value in groups.items():
            if group not in merged:
                merged[group] = value
            else:
                merged[group] = merged[group] + value if is_sum else max(merged[group], value)
    return merged
