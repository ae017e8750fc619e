"""What a run has cost one agent, in one line for its own terminal."""

from __future__ import annotations

from cutlayer.broker.messages import Telemetry
from cutlayer.broker.telemetry import LogHistogram
from cutlayer.dashboards.units import bytes_text, count_text, latency_text, ratio_text

__all__ = ["agent_cost_text"]


def agent_cost_text(telemetry: Telemetry) -> str:
    """Return bytes, ratio, samples and round trips since the agent's start, from its last counters."""
    raw_bytes = sum(row.raw_bytes for row in telemetry.traffic)
    wire_bytes = telemetry.wire_sent_bytes + telemetry.wire_received_bytes
    moved = f"{bytes_text(telemetry.wire_sent_bytes)} sent and {bytes_text(telemetry.wire_received_bytes)} received"
    as_float32 = f", {bytes_text(raw_bytes)} as float32 ({ratio_text(raw_bytes, wire_bytes)})" if raw_bytes else ""
    parts = [f"{moved} on the wire{as_float32}"]
    if telemetry.samples:
        parts.append(
            f"{count_text(telemetry.samples)} training samples, {bytes_text(wire_bytes / telemetry.samples)} each"
        )
    round_trips = LogHistogram(telemetry.round_trips)
    if len(round_trips):
        parts.append(
            f"round trip {latency_text(round_trips.quantile(0.5))} (median), "
            f"{latency_text(round_trips.quantile(0.95))} (95 %)"
        )
    if telemetry.resends:
        noun = "message" if telemetry.resends == 1 else "messages"
        parts.append(f"{count_text(telemetry.resends)} {noun} sent again")
    return "cost of this run here: " + "; ".join(parts)
