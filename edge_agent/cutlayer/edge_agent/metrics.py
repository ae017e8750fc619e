"""An agent's own `/metrics`, where a Prometheus reaches it. Off by default: workers export what agents report.

It shows what the agent has told the worker last, in the worker's metrics; scrape it under a job of its own, or the
same bytes count twice.
"""

from __future__ import annotations

import importlib.metadata
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.messages import Telemetry
from cutlayer.dashboards.catalogue import metric
from cutlayer.dashboards.metric_declaration import Metric
from cutlayer.dashboards.metric_store import MetricStore, StoreCollector
from cutlayer.dashboards.telemetry_counts import add_growth

__all__ = ["AGENT_SHOWS", "AgentMetrics"]

AGENT_SHOWS: tuple[Metric, ...] = tuple(
    metric(name)
    for name in (
        "cutlayer_build",
        "cutlayer_messages_total",
        "cutlayer_raw_bytes_total",
        "cutlayer_payload_bytes_total",
        "cutlayer_wire_bytes_total",
        "cutlayer_round_trip_seconds",
        "cutlayer_stage_seconds",
        "cutlayer_resends_total",
        "cutlayer_duplicates_total",
        "cutlayer_rejects_total",
        "cutlayer_reconnects_total",
        "cutlayer_codec_changes_total",
        "cutlayer_paced_seconds_total",
    )
)
"""Those of the catalogue that an agent knows of itself."""


class AgentMetrics:
    """Serves an agent's counts until it is left; a context manager.

    Args:
        port: Port; 0 takes a free one (`port` says which).
        host: Address to bind.

    Raises:
        SettingsError: When the port is taken.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._store = MetricStore(AGENT_SHOWS)
        self._store.initialise("cutlayer_build", "", "", importlib.metadata.version("cutlayer"))
        self._previous: Telemetry | None = None
        registry = CollectorRegistry()
        registry.register(StoreCollector(self._store))
        for standard in (ProcessCollector, PlatformCollector, GCCollector):
            standard(registry=registry)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise SettingsError(
                f"metrics port {port} of {host} cannot be used: {error.strerror}",
                "choose another with --metrics-port, or 0 for a free one",
            ) from error
        self.port = self._server.server_port

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, telemetry: Telemetry) -> None:
        """Show what a report says."""
        codecs = {row.codec for row in telemetry.traffic}  # this process's own, so there are few
        add_growth(self._store, telemetry, self._previous, codecs)
        self._previous = telemetry
