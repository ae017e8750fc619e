"""What one screen of `cutlayer top` shows, and the same as JSON.

The document, format 1 (keys may be added under the same number):

    format       1
    broker       its address
    run          null, or run_id, model, mode, codec, epochs, phase
    workers      name, online, phase, agents, report_age_s (null before its first report), is_late
    pictures     how many reports' pictures the values are made from
    span_s       seconds from the first of them to the last; rates look back 15 s at most
    headlines    question, answer, detail, meaning
    panels       the overview's, in its order: title, unit, shape, targets; a target has legend and values,
                 a value has name, labels and value, in the unit's base (bytes, seconds, a share of one).
                 A target without data has no values
    agents       slowest first: agent, progress, samples, steps, resends, wire_bytes and raw_bytes (up, down),
                 wire_bytes_per_s (up, down; null before two pictures), round_trip_s (p50, p95; null before an answer),
                 silence_s. `other` stands for all agents beyond those that workers list; since agents come and go
                 between it and the list, it has no wire_bytes_per_s (null)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import RunPhase, WorkerState
from cutlayer.dashboards.headlines import Headline
from cutlayer.dashboards.live_history import Series
from cutlayer.dashboards.metric_labels import OTHER
from cutlayer.dashboards.overview_board import OVERVIEW
from cutlayer.dashboards.panel_text import group_labels, legend_text
from cutlayer.dashboards.panels import Panel
from cutlayer.dashboards.query import Query, Rate, Value
from cutlayer.dashboards.snapshots import Group, Snapshots, evaluate

__all__ = ["TOP_FORMAT", "AgentRow", "Line", "TopState", "WorkerSeen", "agent_rows", "as_document"]

TOP_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker as the broker knows it.

    Attributes:
        name: Its name.
        state: Its retained state, or None.
        age_s: Seconds since its last report of this run; None before the first.
        is_late: Whether its reports have stopped.
    """

    name: str
    state: WorkerState | None
    age_s: float | None
    is_late: bool

    @property
    def is_online(self) -> bool:
        """Whether it says that it is there."""
        return self.state is not None and self.state.online


@dataclass(frozen=True, slots=True)
class UpDown:
    """A number of each direction."""

    up: float
    down: float

    @property
    def both(self) -> float:
        """Their sum."""
        return self.up + self.down


@dataclass(frozen=True, slots=True)
class AgentRow:
    """One agent, as the workers tell of it: counters that they leave out are 0, times and rates not known are None."""

    agent: str
    progress: float
    samples: float
    steps: float
    resends: float
    wire_bytes: UpDown
    raw_bytes: UpDown
    wire_bytes_per_s: UpDown | None
    p50_s: float | None
    p95_s: float | None
    silence_s: float

    @property
    def ratio(self) -> float | None:
        """Raw bytes by wire bytes, or None where there are none."""
        return self.raw_bytes.both / self.wire_bytes.both if self.wire_bytes.both else None


@dataclass(frozen=True, slots=True)
class Line:
    """One group of one target of a panel.

    Attributes:
        name: Its legend.
        labels: Label values by name.
        values: The last minutes', None for gaps; of bars only the present one.
        target: Place of the target in its panel.
    """

    name: str
    labels: Mapping[str, str]
    values: list[float | None]
    target: int

    @property
    def value(self) -> float | None:
        """The present value."""
        return self.values[-1] if self.values else None


@dataclass(frozen=True, slots=True)
class TopState:
    """All that is known at one time.

    Attributes:
        url: The broker.
        is_connected: Whether there is a connection to it.
        problem: Why there is none.
        manifest: The run, or None where none is announced.
        workers: By name.
        series: Every series of the overview.
        times: Of the pictures, seconds since 1970.
        headlines: The overview's questions, answered.
        agents: Slowest first.
    """

    url: str
    is_connected: bool
    problem: str
    manifest: Manifest | None
    workers: tuple[WorkerSeen, ...]
    series: tuple[Series, ...]
    times: tuple[float, ...]
    headlines: tuple[Headline, ...]
    agents: tuple[AgentRow, ...]

    @property
    def phase(self) -> RunPhase | None:
        """Where the run stands, by the workers that are there; by the others where none is."""
        states = [worker.state for worker in self.workers if worker.state is not None]
        states = [state for state in states if state.online] or states
        return max((state.phase for state in states), key=list(RunPhase).index, default=None)

    @property
    def span_s(self) -> float:
        """Seconds from the first picture to the last."""
        return self.times[-1] - self.times[0] if self.times else 0.0

    def lines(self, panel: Panel) -> list[Line]:
        """Return what a panel of the overview shows."""
        place = OVERVIEW.panels.index(panel)
        return [
            Line(legend_text(target, each.group), group_labels(target.query, each.group), each.values, each.key[1])
            for each in self.series
            if each.key[0] == place
            for target in [panel.targets[each.key[1]]]
        ]


def agent_rows(snapshots: Snapshots) -> list[AgentRow]:
    """Return what the workers tell of single agents: the slowest first, all beyond those listed at the end."""
    wire = _by_agent(Value("cutlayer_agent_wire_bytes_total", ("agent", "direction")), snapshots)
    raw = _by_agent(Value("cutlayer_agent_raw_bytes_total", ("agent", "direction")), snapshots)
    rates = _by_agent(Rate("cutlayer_agent_wire_bytes_total", ("agent", "direction")), snapshots)
    trips = _by_agent(Value("cutlayer_agent_round_trip_seconds", ("agent", "share")), snapshots)
    single = {
        name: _by_agent(Value(f"cutlayer_agent_{name}", ("agent",)), snapshots)
        for name in ("progress_ratio", "samples_total", "steps_total", "resends_total", "silence_seconds")
    }
    agents = sorted({agent for found in (wire, raw, trips, *single.values()) for agent in found})

    def one(name: str, agent: str) -> float:
        return single[name].get(agent, {}).get("", 0.0)

    rows = [
        AgentRow(
            agent,
            progress=one("progress_ratio", agent),
            samples=one("samples_total", agent),
            steps=one("steps_total", agent),
            resends=one("resends_total", agent),
            wire_bytes=_up_down(wire, agent),
            raw_bytes=_up_down(raw, agent),
            wire_bytes_per_s=_up_down(rates, agent) if rates and agent != OTHER else None,
            p50_s=trips.get(agent, {}).get("0.5"),
            p95_s=trips.get(agent, {}).get("0.95"),
            silence_s=one("silence_seconds", agent),
        )
        for agent in agents
    ]
    return sorted(rows, key=lambda row: (row.agent == OTHER, -(row.p95_s or 0.0), -row.wire_bytes.both))


def as_document(state: TopState) -> dict[str, Any]:
    """Return the state as JSON, in the form that this module describes."""
    manifest = state.manifest
    return {
        "format": TOP_FORMAT,
        "broker": state.url,
        "run": None
        if manifest is None
        else {
            "run_id": manifest.run_id,
            "model": manifest.model,
            "mode": manifest.window.mode,
            "codec": manifest.codecs.activations,
            "epochs": manifest.epochs,
            "phase": None if state.phase is None else state.phase.value,
        },
        "workers": [
            {
                "name": worker.name,
                "online": worker.is_online,
                "phase": None if worker.state is None else worker.state.phase.value,
                "agents": None if worker.state is None else worker.state.agents,
                "report_age_s": worker.age_s,
                "is_late": worker.is_late,
            }
            for worker in state.workers
        ],
        "pictures": len(state.times),
        "span_s": state.span_s,
        "headlines": [asdict(headline) for headline in state.headlines],
        "panels": [
            {
                "title": panel.title,
                "unit": panel.unit.value,
                "shape": panel.shape.value,
                "targets": _targets(state, panel),
            }
            for panel in OVERVIEW.panels
        ],
        "agents": [_agent(row) for row in state.agents],
    }


def _targets(state: TopState, panel: Panel) -> list[dict[str, Any]]:
    lines = state.lines(panel)
    return [
        {
            "legend": target.legend,
            "values": [
                {"name": line.name, "labels": dict(line.labels), "value": line.value}
                for line in lines
                if line.target == place and line.value is not None
            ],
        }
        for place, target in enumerate(panel.targets)
    ]


def _agent(row: AgentRow) -> dict[str, Any]:
    values = asdict(row)
    trips = {"p50": values.pop("p50_s"), "p95": values.pop("p95_s")}
    return {**values, "round_trip_s": trips}


def _by_agent(query: Query, snapshots: Snapshots) -> dict[str, dict[str, float]]:
    """Return values by agent and, where the query keeps a second label, by that."""
    found: dict[str, dict[str, float]] = {}
    for group, value in evaluate(query, snapshots).items():
        agent, rest = _split(group)
        found.setdefault(agent, {})[rest] = value
    return found


def _split(group: Group) -> tuple[str, str]:
    return group[0], group[1] if len(group) > 1 else ""


def _up_down(values: Mapping[str, Mapping[str, float]], agent: str) -> UpDown:
    by_direction = values.get(agent, {})
    return UpDown(by_direction.get("up", 0.0), by_direction.get("down", 0.0))
