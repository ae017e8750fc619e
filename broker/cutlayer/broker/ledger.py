"""Which training steps are committed: a few ranges for each agent, however long the run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import msgpack

from cutlayer.broker.errors import MalformedMessage

__all__ = ["Ledger", "StepRanges"]


class StepRanges:
    """A set of integers kept as sorted, disjoint ranges [start, stop) that do not touch."""

    def __init__(self, ranges: Iterator[tuple[int, int]] | tuple[tuple[int, int], ...] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            if start >= stop or (self._stops and start <= self._stops[-1]):
                raise MalformedMessage(f"step range {start}..{stop} is empty or out of order")
            self._starts.append(start)
            self._stops.append(stop)

    def __contains__(self, step: int) -> bool:
        place = bisect_right(self._starts, step) - 1
        return place >= 0 and step < self._stops[place]

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._stops, strict=True)

    def add(self, step: int) -> bool:
        """Add a step; return whether it is new."""
        if step in self:
            return False
        place = bisect_right(self._starts, step)
        joins_left = place > 0 and self._stops[place - 1] == step
        joins_right = place < len(self._starts) and self._starts[place] == step + 1
        if joins_left and joins_right:
            self._stops[place - 1] = self._stops[place]
            del self._starts[place], self._stops[place]
        elif joins_left:
            self._stops[place - 1] = step + 1
        elif joins_right:
            self._starts[place] = step
        else:
            self._starts.insert(place, step)
            self._stops.insert(place, step + 1)
        return True

    def first_missing(self) -> int:
        """Return the smallest step that is not in the set."""
        return self.next_missing(0)

    def next_missing(self, step: int) -> int:
        """Return the smallest step from this one on that is not in the set."""
        place = bisect_right(self._starts, step) - 1
        return self._stops[place] if place >= 0 and step < self._stops[place] else step


class Ledger:
    """The committed training steps of every agent of a run."""

    def __init__(self) -> None:
        self._agents: dict[str, StepRanges] = {}

    def add(self, agent: str, step: int) -> bool:
        """Record a committed step; return False when it already is."""
        return self._agents.setdefault(agent, StepRanges()).add(step)

    def of(self, agent: str) -> StepRanges:
        """Return an agent's committed steps."""
        return self._agents.get(agent, StepRanges())

    def agents(self) -> tuple[str, ...]:
        """Return the agents that have committed anything."""
        return tuple(self._agents)

    def to_bytes(self) -> bytes:
        """Serialize for a checkpoint: a MessagePack map of agent to [start, stop, start, stop ...]."""
        flat = {agent: [edge for pair in ranges for edge in pair] for agent, ranges in sorted(self._agents.items())}
        packed: bytes = msgpack.packb(flat)
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Ledger:
        """Read what `to_bytes` wrote.

        Raises:
            MalformedMessage: When the bytes are something else.
        """
        ledger = cls()
        try:
            flat = msgpack.unpackb(data, strict_map_key=True)
            for agent, edges in flat.items():
                if not isinstance(agent, str) or not isinstance(edges, list):
                    raise ValueError("no map of agents to lists")
                if not all(type(edge) is int and edge >= 0 for edge in edges):
                    raise ValueError(f"the steps of {agent[:80]!r} are no whole numbers")
                ledger._agents[agent] = StepRanges(tuple(zip(edges[::2], edges[1::2], strict=True)))
        except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
            raise MalformedMessage(f"ledger: {error}") from None
        return ledger
