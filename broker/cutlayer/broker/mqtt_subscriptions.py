"""The topic filters a client has asked for, and what the broker answered."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence

from paho.mqtt.client import Client
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from cutlayer.broker.mqtt_packets import Protocol
from cutlayer.broker.mqtt_reasons import FAILURE

__all__ = ["Subscriptions"]

MAX_UNANSWERED = 2
"""Some brokers end the connection of who asks for what it may not read (AWS IoT): an optional filter that so many
connections have ended over, before it was answered, is not asked for again."""


class Subscriptions:
    """Remembers topic filters over reconnects. Thread-safe.

    Optional filters go in packets of their own: whatever the broker does with them, the others are in place.
    """

    def __init__(self) -> None:
        self._filters: dict[str, int] = {}
        self._optional: set[str] = set()
        self._asked: dict[int, list[str]] = {}
        self._asking: list[str] = []
        self._num_unanswered: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, topic_filter: str, qos: int, *, is_optional: bool = False) -> None:
        """Remember a topic filter."""
        with self._lock:
            self._filters[topic_filter] = qos
            if is_optional:
                self._optional.add(topic_filter)
            else:
                self._optional.discard(topic_filter)

    def remove(self, topic_filter: str) -> None:
        """Forget a topic filter."""
        with self._lock:
            self._forget(topic_filter)

    def ask(self, client: Client, protocol: Protocol, filters: Mapping[str, int]) -> int | None:
        """Send a SUBSCRIBE; return its packet identifier, or None when there is no connection."""
        with self._lock:
            self._asking = optional = [name for name in filters if name in self._optional]
        if protocol == "5":
            _, mid = client.subscribe([(name, SubscribeOptions(qos=qos)) for name, qos in filters.items()])
        else:
            _, mid = client.subscribe(list(filters.items()))
        with self._lock:
            is_answered = bool(optional) and not self._asking
            if mid is not None and not is_answered:
                self._asked[mid] = list(filters)
            self._asking = []
        return mid

    def ask_all(self, client: Client, protocol: Protocol) -> int | None:
        """Ask for everything remembered; return the packet identifier of what is needed, or None for nothing."""
        with self._lock:
            self._asked.clear()
            needed = {name: qos for name, qos in self._filters.items() if name not in self._optional}
            optional = {name: qos for name, qos in self._filters.items() if name in self._optional}
        mid = self.ask(client, protocol, needed) if needed else None
        if optional:
            self.ask(client, protocol, optional)
        return mid

    def denied(self, mid: int, reasons: Sequence[ReasonCode]) -> tuple[str, str] | None:
        """Take a SUBACK; return what was denied and why, or None when all was granted that is needed."""
        with self._lock:
            asked = self._asked.pop(mid, [])
            # The SUBACK may overtake the note of what was asked. Only one thread asks without having noted what it
            # asked before; so where that is something optional, this is the answer to it.
            if not asked and self._asking:
                asked, self._asking = self._asking, []
            for name in asked:
                self._num_unanswered.pop(name, None)
            for index, reason in enumerate(reasons):
                if reason.value < FAILURE:
                    continue
                if index < len(asked) and asked[index] in self._optional:
                    self._forget(asked[index])
                    continue
                which = f"to {asked[index]!r}" if index < len(asked) else "to a topic filter"
                return f"the subscription {which}", str(reason)
        return None

    def connection_ended(self) -> None:
        """Take notice that what is not answered yet will not be."""
        with self._lock:
            unanswered = {name for names in self._asked.values() for name in names} & self._optional
            self._asked.clear()
            for name in unanswered:
                self._num_unanswered[name] += 1
                if self._num_unanswered[name] >= MAX_UNANSWERED:
                    self._forget(name)

    def _forget(self, topic_filter: str) -> None:
        self._filters.pop(topic_filter, None)
        self._optional.discard(topic_filter)
        self._num_unanswered.pop(topic_filter, None)
