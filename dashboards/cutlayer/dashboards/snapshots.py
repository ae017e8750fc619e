"""Answers the queries of panels without Prometheus, from snapshots of the workers' values."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from cutlayer.dashboards.catalogue import AGENT_NAMES, metric
from cutlayer.dashboards.metric_declaration import Across, Kind, Metric
from cutlayer.dashboards.metric_store import Distribution, MetricStore, SeriesKey
from cutlayer.dashboards.query import (
    Buckets,
    Increase,
    Mean,
    Minus,
    Quantile,
    Query,
    Rate,
    Ratio,
    Selection,
    Times,
    Top,
    Value,
    Within,
    Written,
)

__all__ = ["Group", "Snapshot", "Snapshots", "evaluate"]

Group = tuple[str, ...]
"""Values of the labels that a query keeps, in their order."""


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


def _value(query: Selection, snapshots: Snapshots) -> dict[Group, float]:
    latest = snapshots.latest
    if latest is None:
        return {}
    return _across(query, {worker: _sums(query, numbers) for worker, numbers in latest.numbers.items()})


def _rate(query: Selection, snapshots: Snapshots) -> dict[Group, float]:
    latest, earliest = snapshots.latest, snapshots.earliest
    if latest is None or earliest is None or latest.at <= earliest.at:
        return {}
    increases = _increases(query, earliest, latest)
    return {group: value / (latest.at - earliest.at) for group, value in _across(query, increases).items()}


def _increase(query: Selection, snapshots: Snapshots) -> dict[Group, float]:
    latest, first = snapshots.latest, snapshots.first
    if latest is None or first is None or latest is first:
        return {}
    return _across(query, _increases(query, first, latest))


def _increases(query: Selection, earlier: Snapshot, later: Snapshot) -> dict[str, dict[Group, float]]:
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
                is_older = query.name in AGENT_NAMES or metric(query.name).is_counted_elsewhere
                start = before.get(key, value if is_older else 0.0)
                grown[key] = value - start if value >= start else value
        found[worker] = _sums(query, grown)
    return found


def _distributions(query: Selection, snapshots: Snapshots) -> dict[Group, Distribution]:
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


def _buckets(query: Selection, snapshots: Snapshots) -> dict[Group, float]:
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


def _sums(query: Selection, numbers: Mapping[SeriesKey, float]) -> dict[Group, float]:
    entry = metric(query.name)
    sums: dict[Group, float] = {}
    for key, value in numbers.items():
        group = _group(query, entry, key)
        if group is not None:
            sums[group] = sums.get(group, 0.0) + value
    return sums


def _group(query: Selection, entry: Metric, key: SeriesKey) -> Group | None:
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


def _across(query: Selection, by_worker: Mapping[str, Mapping[Group, float]]) -> dict[Group, float]:
    is_sum = metric(query.name).across is Across.SUM
    merged: dict[Group, float] = {}
    for groups in by_worker.values():
        for group, value in groups.items():
            if group not in merged:
                merged[group] = value
            else:
                merged[group] = merged[group] + value if is_sum else max(merged[group], value)
    return merged
