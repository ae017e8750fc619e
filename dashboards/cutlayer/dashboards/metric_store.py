"""The values of the catalogue's metrics in one process: written by adapters, read by Prometheus, pages and reports.

One thread writes, others read: a reader takes a copy of the whole first, which Python makes in one step. Every series
that is known beforehand exists from the start, so that panels show 0 and not "no data"; the broker's counts do not.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.core import Metric as MetricFamily
from prometheus_client.registry import Collector

from cutlayer.dashboards.catalogue import METRICS, metric
from cutlayer.dashboards.metric_declaration import Kind, Metric

__all__ = ["Distribution", "Labels", "MetricStore", "SeriesKey", "StoreCollector"]

Labels = tuple[str, ...]
"""Label values in the order in which the catalogue declares the names."""
SeriesKey = tuple[str, Labels]
"""Name and label values."""


@dataclass(slots=True)
class Distribution:
    """A histogram: counts by bucket, the last one for all above the bounds.

    Attributes:
        bounds: Upper bounds.
        counts: One more than there are bounds; not cumulative.
        total: Sum of the values.
    """

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        """Values in all."""
        return sum(self.counts)

    def add(self, value: float, times: int = 1) -> None:
        """Count a value so many times."""
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.total += value * times

    def quantile(self, share: float) -> float:
        """Return a quantile as Prometheus' `histogram_quantile` does: linear within a bucket, from 0 in the first.

        Above the last bound it is that bound; of no values it is not a number.
        """
        rank, seen = share * self.count, 0
        for index, count in enumerate(self.counts):
            if seen + count >= rank and count:
                if index == len(self.bounds):
                    return self.bounds[-1]
                lower = self.bounds[index - 1] if index else min(0.0, self.bounds[0])
                upper = self.bounds[index]
                return lower + (upper - lower) * (rank - seen) / count
            seen += count
        return math.nan

    def copy(self) -> Distribution:
        """Return one that does not change."""
        return Distribution(self.bounds, list(self.counts), self.total)


class MetricStore:
    """The present values.

    Args:
        metrics: Those that this process has.
    """

    def __init__(self, metrics: Iterable[Metric] = METRICS) -> None:
        self.metrics = tuple(metrics)
        self._numbers: dict[SeriesKey, float] = {}
        self._distributions: dict[SeriesKey, Distribution] = {}
        for entry in self.metrics:
            for labels in entry.initial():
                self._initialise(entry, labels)

    def initialise(self, name: str, *labels: str) -> None:
        """Let a series exist, at 0, whose labels only the run knows."""
        self._initialise(metric(name), labels)

    def add(self, name: str, amount: float = 1.0, *labels: str) -> None:
        """Increase a counter.

        Raises:
            KeyError: When the catalogue has no such metric with so many labels.
        """
        key = (name, labels)
        try:
            self._numbers[key] += amount
        except KeyError:
            self.initialise(name, *labels)
            self._numbers[key] += amount

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge, or a counter that another program counts, to its value."""
        if (name, labels) not in self._numbers:  # never at 0 before: a reader might see a rate from there
            self._initialise(metric(name), labels, float(value))
        self._numbers[name, labels] = float(value)

    def observe(self, name: str, value: float, *labels: str, times: int = 1) -> None:
        """Count a value in a histogram, so many times."""
        key = (name, labels)
        if key not in self._distributions:
            self.initialise(name, *labels)
        self._distributions[key].add(value, times)

    def observe_all(self, name: str, times: Mapping[float, int], *labels: str, total: float | None = None) -> None:
        """Count values in a histogram, each so many times.

        Args:
            name: The histogram.
            times: How often each value.
            *labels: Its label values.
            total: The sum of the values, where it is known better than from them.
        """
        key = (name, labels)
        if key not in self._distributions:
            self.initialise(name, *labels)
        distribution = self._distributions[key]
        for value, count in times.items():
            distribution.counts[bisect.bisect_left(distribution.bounds, value)] += count
        # In one step, and never beyond what is true: a sum that a reader sees fall is a restart to Prometheus.
        distribution.total += sum(value * count for value, count in times.items()) if total is None else total

    def numbers(self) -> dict[SeriesKey, float]:
        """Return a copy of the counters and gauges."""
        return dict(self._numbers)

    def distributions(self) -> dict[SeriesKey, Distribution]:
        """Return a copy of the histograms."""
        return {key: distribution.copy() for key, distribution in list(self._distributions.items())}

    def value(self, name: str, *labels: str) -> float:
        """Return the value of one counter or gauge; 0 where there is none yet."""
        return self._numbers.get((name, labels), 0.0)

    def _initialise(self, entry: Metric, labels: Labels, value: float = 0.0) -> None:
        if len(labels) != len(entry.labels):
            raise KeyError(f"{entry.name} has the labels {', '.join(entry.labels) or 'none'}, not {labels}")
        if entry.kind is Kind.HISTOGRAM:
            self._distributions.setdefault((entry.name, labels), Distribution(entry.buckets))
        else:
            self._numbers.setdefault((entry.name, labels), value)


class StoreCollector(Collector):
    """Shows a store to prometheus_client.

    Args:
        store: What to show.
    """

    def __init__(self, store: MetricStore) -> None:
        self._store = store

    def collect(self) -> Iterator[MetricFamily]:
        """Yield every metric with all its series, in the order of the catalogue."""
        numbers: dict[str, list[tuple[Labels, float]]] = {}
        for (name, labels), value in self._store.numbers().items():
            numbers.setdefault(name, []).append((labels, value))
        distributions: dict[str, list[tuple[Labels, Distribution]]] = {}
        for (name, labels), distribution in self._store.distributions().items():
            distributions.setdefault(name, []).append((labels, distribution))
        for entry in self._store.metrics:
            yield family(entry, numbers.get(entry.name, ()), distributions.get(entry.name, ()))


def family(
    entry: Metric,
    numbers: Iterable[tuple[Labels, float]],
    distributions: Iterable[tuple[Labels, Distribution]] = (),
) -> MetricFamily:
    """Return one metric in prometheus_client's form.

    Args:
        entry: The metric.
        numbers: Label values and value of each series.
        distributions: Label values and histogram of each series, for a histogram.
    """
    names = list(entry.labels)
    match entry.kind:
        case Kind.COUNTER:
            counter = CounterMetricFamily(entry.name, entry.help, labels=names)
            for labels, value in numbers:
                counter.add_metric(labels, value)
            return counter
        case Kind.GAUGE:
            gauge = GaugeMetricFamily(entry.name, entry.help, labels=names)
            for labels, value in numbers:
                gauge.add_metric(labels, value)
            return gauge
        case Kind.INFO:
            info = InfoMetricFamily(entry.name, entry.help, labels=names)
            for labels, _ in numbers:
                info.add_metric(labels, {})
            return info
        case Kind.HISTOGRAM:
            histogram = HistogramMetricFamily(entry.name, entry.help, labels=names)
            for labels, distribution in distributions:
                histogram.add_metric(labels, _cumulative(distribution), distribution.total)
            return histogram


def _cumulative(distribution: Distribution) -> list[tuple[str, float]]:
    seen, buckets = 0, []
    for bound, count in zip((*map(_bound_text, distribution.bounds), "+Inf"), distribution.counts, strict=True):
        seen += count
        buckets.append((bound, float(seen)))
    return buckets


def _bound_text(bound: float) -> str:
    return repr(float(bound))


def labels_of(entry: Metric, labels: Labels) -> Mapping[str, str]:
    """Return label values by name."""
    return dict(zip(entry.labels, labels, strict=True))
