"""The topic filters a client has asked for, and what the broker answered."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from paho.mqtt.client import Client
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from cutlayer.broker.mqtt_packets import Protocol
from cutlayer.broker.mqtt_reasons import FAILURE

__all__ = ["Subscriptions"]


class Subscriptions:
    """Remembers topic filters over reconnects. Thread-safe."""

    def __init__(self) -> None:
        self._filters: dict[str, int] = {}
        self._asked: dict[int, list[str]] = {}
        self._lock = threading.Lock()

    def add(self, topic_filter: str, qos: int) -> None:
        """Remember a topic filter."""
        with self._lock:
            self._filters[topic_filter] = qos

    def remove(self, topic_filter: str) -> None:
        """Forget a topic filter."""
        with self._lock:
            self._filters.pop(topic_filter, None)

    def ask(self, client: Client, protocol: Protocol, filters: Mapping[str, int]) -> int | None:
        """Send a SUBSCRIBE; return its packet identifier, or None when there is no connection."""
        if protocol == "5":
            _, mid = client.subscribe([(name, SubscribeOptions(qos=qos)) for name, qos in filters.items()])
        else:
            _, mid = client.subscribe(list(filters.items()))
        if mid is not None:
            with self._lock:
                self._asked[mid] = list(filters)
        return mid

    def ask_all(self, client: Client, protocol: Protocol) -> int | None:
        """Send a SUBSCRIBE for everything remembered; return None when that is nothing."""
        with self._lock:
            self._asked.clear()
            filters = dict(self._filters)
        return self.ask(client, protocol, filters) if filters else None

    def denied(self, mid: int, reasons: Sequence[ReasonCode]) -> tuple[str, str] | None:
        """Take a SUBACK; return what was denied and why, or None when all was granted."""
        with self._lock:
            asked = self._asked.pop(mid, [])
        for index, reason in enumerate(reasons):
            if reason.value >= FAILURE:
                # The SUBACK may overtake the note of what was asked; then only the reason is known.
                which = f"to {asked[index]!r}" if index < len(asked) else "to a topic filter"
                return f"the subscription {which}", str(reason)
        return None
