"""What a broker tells of itself under `$SYS/broker`, by Mosquitto's names. Others tell nothing, or forbid to ask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from cutlayer.broker.transport import Received
from cutlayer.server_worker.events import BrokerReported

__all__ = ["FIGURES", "SYS", "broker_figure"]

SYS: Final = "$SYS/"
"""How the names of such topics start: no client's topic may (MQTT 5, section 4.7.2)."""
_BROKER: Final = f"{SYS}broker/"

FIGURES: Final[Mapping[str, str]] = {
    f"{_BROKER}bytes/received": "cutlayer_broker_received_bytes_total",
    f"{_BROKER}bytes/sent": "cutlayer_broker_sent_bytes_total",
    f"{_BROKER}publish/messages/received": "cutlayer_broker_publish_received_total",
    f"{_BROKER}publish/messages/sent": "cutlayer_broker_publish_sent_total",
    f"{_BROKER}publish/messages/dropped": "cutlayer_broker_publish_dropped_total",
    f"{_BROKER}publish/bytes/received": "cutlayer_broker_publish_received_bytes_total",
    f"{_BROKER}publish/bytes/sent": "cutlayer_broker_publish_sent_bytes_total",
    f"{_BROKER}clients/connected": "cutlayer_broker_clients",
    f"{_BROKER}retained messages/count": "cutlayer_broker_retained_messages",
    f"{_BROKER}heap/current": "cutlayer_broker_heap_bytes",
    f"{_BROKER}uptime": "cutlayer_broker_uptime_seconds",
}
"""The metric of each topic."""

MAX_TEXT_BYTES: Final = 64


def broker_figure(packet: Received) -> BrokerReported | None:
    """Read one figure; return None for what is none: another topic, or a text that is no number.

    Args:
        packet: Came on a topic below `$SYS`; the payload is a number, or one with its unit (`361 seconds`).
    """
    metric = FIGURES.get(packet.topic)
    if metric is None or not 0 < len(packet.payload) <= MAX_TEXT_BYTES:
        return None
    words = packet.payload.split()
    try:
        value = float(words[0])
    except (ValueError, IndexError):
        return None
    return BrokerReported(metric, value) if math.isfinite(value) and value >= 0 else None
