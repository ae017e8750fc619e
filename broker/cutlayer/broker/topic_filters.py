"""A map from topic filters to values that finds all values whose filter matches a topic name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from paho.mqtt.matcher import MQTTMatcher

__all__ = ["FilterMap"]

Value = TypeVar("Value")


class FilterMap(Generic[Value]):
    """A typed face for paho-mqtt's matcher, a prefix tree: a look-up costs the topic's levels, not the filters' number.

    Wildcards as in MQTT 5, section 4.7: `+` for one level, a trailing `#` for the rest, neither for `$` topics.
    """

    def __init__(self) -> None:
        self._tree: Any = MQTTMatcher()  # type: ignore[no-untyped-call]

    def __setitem__(self, topic_filter: str, value: Value) -> None:
        self._tree[topic_filter] = value

    def __delitem__(self, topic_filter: str) -> None:
        del self._tree[topic_filter]

    def get(self, topic_filter: str) -> Value | None:
        """Return the value of exactly this filter, or None."""
        try:
            found: Value = self._tree[topic_filter]
        except KeyError:
            return None
        return found

    def matching(self, topic: str) -> Iterator[Value]:
        """Yield the value of each filter that matches a topic name."""
        found: Iterator[Value] = self._tree.iter_match(topic)
        return found
