"""What is declared of a metric: its kind and labels, who measures it, how several workers' values make one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Across", "Kind", "Metric", "Source"]


class Kind(StrEnum):
    """Prometheus' kinds."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


class Source(StrEnum):
    """Who has measured it."""

    WORKER = "worker"
    AGENTS = "agents"
    BROKER = "broker"


class Across(StrEnum):
    """How the values of several workers of a run make one: parts of a whole, or the same number seen by each."""

    SUM = "sum"
    MAX = "max"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: As Prometheus shows it; a histogram's without `_bucket`, `_sum` and `_count`.
        kind: Prometheus' kind.
        help: One line for a person.
        labels: Label names, and the values that exist from the start; None where the run names them.
        buckets: Upper bounds, for a histogram.
        source: Who has measured it.
        across: How the values of several workers make one.
        combinations: The label values that exist from the start, where not all combinations of `labels` can occur.
    """

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    source: Source = Source.WORKER
    across: Across = Across.SUM
    combinations: tuple[tuple[str, ...], ...] = ()

    @property
    def is_counted_elsewhere(self) -> bool:
        """Whether another program counts it, from a start of its own."""
        return self.kind is Kind.COUNTER and self.source is Source.BROKER

    def initial(self) -> Iterator[tuple[str, ...]]:
        """Yield the label values that exist from the start, in the order of `labels`: none where a run names some.

        None either of what the broker counts: it has counted before this worker came, and from a 0 of ours to its
        first figure would be a rate that never was.
        """
        if self.is_counted_elsewhere:
            return
        if self.combinations:
            yield from self.combinations
        elif all(values is not None for values in self.labels.values()):
            yield from itertools.product(*(values or () for values in self.labels.values()))
