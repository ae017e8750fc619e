"""What each agent costs and how it fares, for the few that move most bytes: `/metrics/clients`, the page, reports.

Any number of agents may come, and each names itself; so the table shows some by name and the rest together.
"""

from __future__ import annotations

import heapq
import operator
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from cutlayer.broker.messages import Direction, Telemetry
from cutlayer.broker.telemetry import LogHistogram
from cutlayer.dashboards.metric_labels import OTHER
from cutlayer.dashboards.metric_store import SeriesKey

__all__ = ["DEFAULT_TOP", "MAX_TOP", "AgentTable"]

DEFAULT_TOP: Final = 20
MAX_TOP: Final = 200
SILENT_AFTER_S: Final = 900.0
"""Who has not reported for so long is not listed by name any more."""
HALF_SPAN_S: Final = 15.0
"""Round trips are those of the last one to two times as long."""

_Buckets = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Span:
    """An agent's cumulative round trips at two moments, to take the later ones from the earlier."""

    started_at: float
    older: _Buckets = ()
    newer: _Buckets = ()

    def moved_on(self, latest: _Buckets, now: float) -> _Span:
        return self if now < self.started_at + HALF_SPAN_S else _Span(now, self.newer, latest)


class _Totals(NamedTuple):
    """What is added up over an agent's processes."""

    wire_up_bytes: int = 0
    wire_down_bytes: int = 0
    raw_up_bytes: int = 0
    raw_down_bytes: int = 0
    samples: int = 0
    resends: int = 0

    @classmethod
    def of(cls, telemetry: Telemetry) -> _Totals:
        raw = {Direction.UP: 0, Direction.DOWN: 0}
        for row in telemetry.traffic:
            raw[row.direction] += row.raw_bytes
        wire = (telemetry.wire_sent_bytes, telemetry.wire_received_bytes)
        return cls(*wire, raw[Direction.UP], raw[Direction.DOWN], telemetry.samples, telemetry.resends)

    def plus(self, other: _Totals) -> _Totals:
        return _Totals(*map(operator.add, self, other))

    def less(self, other: _Totals) -> _Totals:
        return _Totals(*map(operator.sub, self, other))


@dataclass(frozen=True, slots=True)
class _Agent:
    """One agent. It is replaced and never changed, so that other threads read it whole."""

    incarnation: int
    heard_at: float
    span: _Span
    round_trips: _Buckets
    totals: _Totals
    steps: int
    total_steps: int


class AgentTable:
    """All agents that have reported to this worker. One thread writes, others read.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._agents: dict[str, _Agent] = {}

    def take(self, agent: str, now: Telemetry, before: Telemetry | None) -> None:
        """Take an agent's report; `before` is the one before it of the same process."""
        heard_at = self._clock()
        known = self._agents.get(agent)
        totals = _Totals.of(now) if before is None else _Totals.of(now).less(_Totals.of(before))
        if known is not None:
            totals = known.totals.plus(totals)
            if now.incarnation < known.incarnation:  # the last words of an earlier process
                self._agents[agent] = replace(known, totals=totals)
                return
        if known is not None and known.incarnation == now.incarnation:
            span = known.span.moved_on(known.round_trips, heard_at)
        else:
            span = _Span(heard_at)
        self._agents[agent] = _Agent(
            now.incarnation, heard_at, span, now.round_trips, totals, now.steps, now.total_steps
        )

    def numbers(self, top: int = DEFAULT_TOP) -> dict[SeriesKey, float]:
        """Return the series of `catalogue.AGENT_METRICS`: of the agents with most bytes, and `other` for the rest.

        `other` has counters only. It falls when an agent of the rest comes to be listed, so its rate says little.

        Args:
            top: Agents by name, at the most; never more than `MAX_TOP`.
        """
        now = self._clock()
        agents = dict(self._agents)  # in one piece, while another thread writes
        present = [
            (agent.totals.wire_up_bytes + agent.totals.wire_down_bytes, name)
            for name, agent in agents.items()
            if name != OTHER and now < agent.heard_at + SILENT_AFTER_S
        ]
        listed = [name for _, name in heapq.nlargest(min(max(top, 0), MAX_TOP), present)]
        numbers: dict[SeriesKey, float] = {}
        for name in listed:
            agent = agents.pop(name)
            numbers.update(_counters(name, [agent]))
            for quantile, seconds in _quantiles(agent).items():
                numbers["cutlayer_agent_round_trip_seconds", (name, quantile)] = seconds
            if agent.total_steps:
                progress = min(agent.steps / agent.total_steps, 1.0)
                numbers["cutlayer_agent_progress_ratio", (name,)] = progress
            numbers["cutlayer_agent_silence_seconds", (name,)] = now - agent.heard_at
        numbers.update(_counters(OTHER, agents.values()))
        return numbers


def _counters(name: str, agents: Iterable[_Agent]) -> dict[SeriesKey, float]:
    totals, steps = _Totals(), 0
    for agent in agents:
        totals, steps = totals.plus(agent.totals), steps + agent.steps
    return {
        ("cutlayer_agent_wire_bytes_total", (name, "up")): float(totals.wire_up_bytes),
        ("cutlayer_agent_wire_bytes_total", (name, "down")): float(totals.wire_down_bytes),
        ("cutlayer_agent_raw_bytes_total", (name, "up")): float(totals.raw_up_bytes),
        ("cutlayer_agent_raw_bytes_total", (name, "down")): float(totals.raw_down_bytes),
        ("cutlayer_agent_samples_total", (name,)): float(totals.samples),
        ("cutlayer_agent_steps_total", (name,)): float(steps),
        ("cutlayer_agent_resends_total", (name,)): float(totals.resends),
    }


def _quantiles(agent: _Agent) -> dict[str, float]:
    """Return the quantiles of an agent's last round trips; none when there were none."""
    before = dict(agent.span.older)
    last = LogHistogram(
        (bucket, count - before.get(bucket, 0)) for bucket, count in agent.round_trips if count > before.get(bucket, 0)
    )
    found = {"0.5": last.quantile(0.5), "0.95": last.quantile(0.95)}
    return {name: seconds for name, seconds in found.items() if seconds is not None}
