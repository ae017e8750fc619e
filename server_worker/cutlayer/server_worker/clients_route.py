"""`/metrics/clients?top=20`: figures of single agents, for a bounded number of them, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric as MetricFamily
from prometheus_client.registry import Collector

from cutlayer.dashboards.catalogue import AGENT_METRICS
from cutlayer.dashboards.metric_store import Labels, SeriesKey, family
from cutlayer.server_worker.agent_table import DEFAULT_TOP, MAX_TOP
from cutlayer.server_worker.http_routes import Request, Response, Route, metrics_route

__all__ = ["clients_route"]


def clients_route(numbers: Callable[[int], Mapping[SeriesKey, float]]) -> Route:
    """Return a route that shows the agents with most bytes to Prometheus.

    Args:
        numbers: Returns the series of so many agents, and of the rest together.
    """

    def clients(request: Request) -> Response:
        registry = CollectorRegistry()
        registry.register(_Numbers(numbers(_top(request))))
        return metrics_route(registry)(request)

    return clients


def _top(request: Request) -> int:
    """Return how many agents are wanted.

    Raises:
        ValueError: When that is no number of them.
    """
    text = request.query.get("top", str(DEFAULT_TOP))
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_TOP)) and 1 <= int(text) <= MAX_TOP):
        raise ValueError(
            f"top is the number of agents to list, from 1 to {MAX_TOP}: /metrics/clients?top={DEFAULT_TOP}"
        )
    return int(text)


class _Numbers(Collector):
    def __init__(self, numbers: Mapping[SeriesKey, float]) -> None:
        self._series: dict[str, list[tuple[Labels, float]]] = {}
        for (name, labels), value in numbers.items():
            self._series.setdefault(name, []).append((labels, value))

    def collect(self) -> Iterator[MetricFamily]:
        """Yield every metric of the table."""
        for entry in AGENT_METRICS:
            yield family(entry, self._series.get(entry.name, ()))
