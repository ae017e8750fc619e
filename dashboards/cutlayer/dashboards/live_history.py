"""The last minutes of every panel's values, one a second: what a page needs to draw without a Prometheus.

A query's groups come and go (a site joins, a kind of message is sent for the first time), so each series has a value or
a gap for each time that is kept. Panels of bars show the present only, and nothing older is kept of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from cutlayer.dashboards.catalogue import METRICS
from cutlayer.dashboards.metric_store import Distribution, SeriesKey
from cutlayer.dashboards.panels import Board, Shape
from cutlayer.dashboards.query import Query, metrics_of
from cutlayer.dashboards.snapshots import Group, Snapshot, Snapshots, evaluate

__all__ = ["History", "Series", "TargetKey"]

TargetKey = tuple[int, int]
"""Place of a panel on its board, and of a target in its panel."""

NUM_DIGITS: Final = 5
"""Significant digits of what is kept: more than a screen can show, and half the bytes of all digits."""

Value = TypeVar("Value")
ByName = Mapping[str, Mapping[str, Mapping[SeriesKey, Value]]]
"""By worker, name of the metric, and series."""


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one group of one target.

    Attributes:
        key: Which target.
        group: Label values that the query keeps.
        values: One for each time, None for a gap; of bars only the last.
    """

    key: TargetKey
    group: Group
    values: list[float | None]


class _Answer:
    """One query, with the few series that it reads: in a snapshot of all, each query would look at each series."""

    def __init__(self, query: Query, rate_s: float) -> None:
        self.query = query
        self._names = metrics_of(query)
        self._snapshots = Snapshots(rate_s)

    def take(self, at: float, numbers: ByName[float], distributions: ByName[Distribution]) -> dict[Group, float]:
        self._snapshots.add(Snapshot(at, self._chosen(numbers), self._chosen(distributions)))
        return evaluate(self.query, self._snapshots)

    def _chosen(self, values: ByName[Value]) -> dict[str, dict[SeriesKey, Value]]:
        return {
            worker: {key: value for name in self._names for key, value in by_name.get(name, {}).items()}
            for worker, by_name in values.items()
        }


@dataclass(frozen=True, slots=True)
class _Target:
    key: TargetKey
    answer: int
    is_bars: bool


class History:
    """The values of a board's panels over the last minutes.

    Args:
        board: The panels.
        num_kept: Times that are kept.
        rate_s: Seconds that a rate looks back.
    """

    def __init__(self, board: Board, num_kept: int, rate_s: float) -> None:
        self.num_taken = 0
        """Times in all, those that are forgotten included."""
        self.num_kept = num_kept
        self._times: deque[float] = deque(maxlen=num_kept)
        self._answers: list[_Answer] = []
        self._targets = [
            _Target((panel_index, target_index), self._ask(target.query, rate_s), panel.shape is Shape.BARS)
            for panel_index, panel in enumerate(board.panels)
            for target_index, target in enumerate(panel.targets)
        ]
        self._kept: dict[tuple[TargetKey, Group], deque[float | None]] = {}
        self._bars: dict[tuple[TargetKey, Group], float] = {}

    def add(self, at: float, snapshot: Snapshot) -> None:
        """Answer every query.

        Args:
            at: The time to show, seconds since 1970.
            snapshot: All values.
        """
        numbers, distributions = _by_name(snapshot.numbers), _by_name(snapshot.distributions)
        answers = [answer.take(snapshot.at, numbers, distributions) for answer in self._answers]
        now: dict[tuple[TargetKey, Group], float] = {}
        self._bars = {}
        for target in self._targets:
            values = self._bars if target.is_bars else now
            for group, value in answers[target.answer].items():
                if math.isfinite(value):
                    values[target.key, group] = _rounded(value)
        for new in now.keys() - self._kept.keys():
            self._kept[new] = deque([None] * len(self._times), maxlen=self.num_kept)
        for key, kept in self._kept.items():
            kept.append(now.get(key))
        self._times.append(at)
        self.num_taken += 1
        if self.num_taken % self.num_kept == 0:
            self._forget()

    def times(self, since: int) -> list[float]:
        """Return the times after the first `since` of all."""
        return list(self._times)[self._start(since) :]

    def series(self, since: int) -> list[Series]:
        """Return all series in the order of the board: values after the first `since` of all, and the bars' last."""
        start = self._start(since)
        lines = [Series(key, group, list(values)[start:]) for (key, group), values in self._kept.items()]
        lines.sort(key=lambda series: (series.key, [(_DECLARED.get(value, -1), value) for value in series.group]))
        bars = [Series(key, group, [value]) for (key, group), value in self._bars.items()]
        return lines + bars

    def _start(self, since: int) -> int:
        return max(since - (self.num_taken - len(self._times)), 0)

    def _ask(self, query: Query, rate_s: float) -> int:
        """Return the place of a query among those to answer: two panels may ask the same."""
        for index, answer in enumerate(self._answers):
            if answer.query == query:
                return index
        self._answers.append(_Answer(query, rate_s))
        return len(self._answers) - 1

    def _forget(self) -> None:
        for key in [key for key, values in self._kept.items() if all(value is None for value in values)]:
            del self._kept[key]


_DECLARED: Final = {
    value: index
    for index, value in enumerate(
        value for entry in METRICS for values in entry.labels.values() for value in values or ()
    )
}
"""Label values in the catalogue's order: a step's stages as they follow each other."""


def _by_name(by_worker: Mapping[str, Mapping[SeriesKey, Value]]) -> ByName[Value]:
    named: dict[str, dict[str, dict[SeriesKey, Value]]] = {}
    for worker, series in by_worker.items():
        names = named[worker] = {}
        for key, value in series.items():
            names.setdefault(key[0], {})[key] = value
    return named


def _rounded(value: float) -> float:
    return float(f"{value:.{NUM_DIGITS}g}")
