"""Adds what agents count, as their telemetry tells it, to a worker's counters.

Agents count from their own start; what is added is what has grown since the report before. So a worker that goes on
with a run takes the first report of an agent that was running already as its baseline: what came before it has been
counted by another process, and Prometheus would add it twice. In a pool one worker adds for all.
"""

from __future__ import annotations

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Direction, Telemetry
from cutlayer.broker.telemetry import MQTT_KIND
from cutlayer.dashboards.catalogue import NO_CODEC
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.dashboards.telemetry_counts import add_growth, initialise_traffic
from cutlayer.server_worker.events import TelemetryTaken

__all__ = ["AgentCounters"]


class AgentCounters:
    """The counters of all agents together.

    Args:
        store: Where they stand.
        manifest: The run, whose codecs have series from the start.
        counted_before: Agents that had started by then (milliseconds since the epoch) may have been counted by another
            worker's process.
    """

    def __init__(self, store: MetricStore, manifest: Manifest, counted_before: int) -> None:
        self._store = store
        self._counted_before = counted_before
        # An agent that lacks a byte stage leaves it out.
        self._codecs = frozenset(form for _, name in manifest.codecs for form in (name, name.partition("+")[0]))
        initialise_traffic(
            store,
            {
                "Activations": manifest.codecs.activations,
                "Outputs": manifest.codecs.outputs,
                "OutputGradients": manifest.codecs.output_gradients,
                "ActivationGradients": NO_CODEC,  # tokenizers are frozen, so commits carry no tensors
            },
        )

    def take(self, event: TelemetryTaken) -> None:
        """Add what is new in an agent's counters."""
        now, before = event.telemetry, event.previous
        is_older = now.incarnation < self._counted_before
        if not event.is_counted_here or (before is None and is_older):
            return
        add_growth(self._store, now, before, self._codecs)
        if now.final and not is_older:
            for direction, num_bytes in _rest(now).items():
                amount = max(num_bytes, 0)
                self._store.add("cutlayer_wire_bytes_total", amount, direction.value, MQTT_KIND, NO_CODEC)


def _rest(telemetry: Telemetry) -> dict[Direction, int]:
    """Return what has crossed a connection and is in no row: packets that were sent again, or not taken."""
    rest = {Direction.UP: telemetry.wire_sent_bytes, Direction.DOWN: telemetry.wire_received_bytes}
    for row in telemetry.traffic:
        rest[row.direction] -= row.wire_bytes
    return rest
