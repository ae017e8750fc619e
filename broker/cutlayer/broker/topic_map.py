"""A map from topic names to values that finds all values whose topic a filter matches: the mirror of `FilterMap`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["TopicMap"]

Value = TypeVar("Value")


@dataclass(slots=True)
class _Level:
    topic: str | None = None
    below: dict[str, _Level] = field(default_factory=dict)


class TopicMap(Mapping[str, Value], Generic[Value]):
    """A prefix tree of topic names: a look-up costs what it finds, not the number of topics.

    Wildcards as in MQTT 5, section 4.7: `+` for one level, a trailing `#` for the rest and the level above it, neither
    for topics that begin with `$`.
    """

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}
        self._root = _Level()

    def __getitem__(self, topic: str) -> Value:
        return self._values[topic]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __setitem__(self, topic: str, value: Value) -> None:
        if topic not in self._values:
            level = self._root
            for name in topic.split("/"):
                level = level.below.setdefault(name, _Level())
            level.topic = topic
        self._values[topic] = value

    def discard(self, topic: str) -> None:
        """Forget a topic, if it is here."""
        if self._values.pop(topic, None) is None:
            return
        names = topic.split("/")
        path = [self._root]
        for name in names:
            path.append(path[-1].below[name])
        path[-1].topic = None
        for above, name in zip(reversed(path[:-1]), reversed(names), strict=True):
            if above.below[name].topic is not None or above.below[name].below:
                return
            del above.below[name]

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._root = _Level()

    def matching(self, topic_filter: str) -> Iterator[Value]:
        """Yield the value of each topic that a filter matches, in an order that only the history decides."""
        for topic in _find(self._root, topic_filter.split("/"), is_first=True):
            yield self._values[topic]


def _find(level: _Level, names: list[str], *, is_first: bool = False) -> Iterator[str]:
    if not names or names == ["#"]:
        if level.topic is not None:
            yield level.topic
        if not names:
            return
    name, rest = names[0], names[1:]
    if name in ("+", "#"):
        below = rest if name == "+" else names
        for found, deeper in level.below.items():
            if not (is_first and found.startswith("$")):
                yield from _find(deeper, below)
    elif name in level.below:
        yield from _find(level.below[name], rest)
