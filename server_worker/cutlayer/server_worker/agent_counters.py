"""Adds what agents count, as their telemetry tells it, to a worker's counters.

Agents count from their own start; what is added is what has grown since the report before. So a worker that joins a
run, or goes on with one, takes the first report that it hears of an agent as its baseline, unless it is the agent's
first (its sequence says so; clocks of two machines would not): what came before has been counted by another process,
and Prometheus would add it twice. In a pool one worker adds for all.
"""

from __future__ import annotations

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Direction, Telemetry
from cutlayer.broker.telemetry import MQTT_KIND, STORE_CODEC
from cutlayer.compression import codec_from_name
from cutlayer.dashboards.metric_labels import NO_CODEC
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.dashboards.telemetry_counts import add_growth, initialise_traffic
from cutlayer.server_worker.events import TelemetryTaken

__all__ = ["AgentCounters"]


class AgentCounters:
    """The counters of all agents together.

    Args:
        store: Where they stand.
        manifest: The run, whose codecs have series from the start.
        joins_run: Whether another worker's process may have counted agents before.
    """

    def __init__(self, store: MetricStore, manifest: Manifest, *, joins_run: bool) -> None:
        self._store = store
        self._joins_run = joins_run
        self._counted_elsewhere: set[tuple[str, int]] = set()
        # An agent that lacks a byte stage leaves it out.
        ladder = {codec_from_name(name).name for name in manifest.budget.ladder}
        names = [*(name for _, name in manifest.codecs), *ladder, STORE_CODEC]
        self._codecs = frozenset(form for name in names for form in (name, name.partition("+")[0]))
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
        process = (event.agent, now.incarnation)
        if self._joins_run and before is None and now.sequence > 1:
            self._counted_elsewhere.add(process)
            return
        if not event.is_counted_here:
            return
        add_growth(self._store, now, before, self._codecs)
        if now.final and process not in self._counted_elsewhere:
            for direction, num_bytes in _rest(now).items():
                amount = max(num_bytes, 0)
                self._store.add("cutlayer_wire_bytes_total", amount, direction.value, MQTT_KIND, NO_CODEC)


def _rest(telemetry: Telemetry) -> dict[Direction, int]:
    """Return what has crossed a connection and is in no row: packets that were sent again, or not taken."""
    rest = {Direction.UP: telemetry.wire_sent_bytes, Direction.DOWN: telemetry.wire_received_bytes}
    for row in telemetry.traffic:
        rest[row.direction] -= row.wire_bytes
    return rest
