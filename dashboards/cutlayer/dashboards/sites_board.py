"""The page on sites: one agent beside another, for a bounded number of them (`/metrics/clients`)."""

from __future__ import annotations

from typing import Final

from cutlayer.dashboards.metric_labels import OTHER
from cutlayer.dashboards.panels import Board, Panel, Row, Shape, Target, Threshold, Unit
from cutlayer.dashboards.query import Query, Rate, Ratio, Top, Value

__all__ = ["SITES", "SITE_VARIABLE"]

SITE_VARIABLE: Final = "agent"
_CHOSEN: Final = {"agent": SITE_VARIABLE}
MOST: Final = 20


def _value(name: str, **where: str) -> Query:
    return Value(name, ("agent",), where, _CHOSEN)


def _rate(name: str, **where: str) -> Query:
    # `other` falls whenever an agent of it comes to be listed, which Prometheus would take for a counter's new start.
    return Rate(name, ("agent",), where, _CHOSEN, {"agent": OTHER})


def _by_site(
    title: str, description: str, unit: Unit, query: Query, shape: Shape = Shape.LINES, width: int = 12
) -> Panel:
    """Return a panel with a line, or bar, for each of the sites with the highest values."""
    return Panel(title, description, unit, shape, (Target(Top(query, MOST), "{{agent}}"),), width)


WIRE: Final = "cutlayer_agent_wire_bytes_total"
ROUND_TRIP: Final = "cutlayer_agent_round_trip_seconds"

TABLE: Final = Panel(
    "Sites",
    "A line for each of the agents with most bytes; other stands for the rest together. A site whose round trip stands "
    "out has a slow link or a busy machine; one that is silent for long has gone.",
    Unit.PLAIN,
    Shape.TABLE,
    (
        Target(_value("cutlayer_agent_progress_ratio"), "progress", unit=Unit.SHARE),
        Target(_rate("cutlayer_agent_samples_total"), "samples/s", unit=Unit.PER_SECOND),
        Target(_value(ROUND_TRIP, share="0.5"), "round trip 50 %", unit=Unit.SECONDS),
        Target(_value(ROUND_TRIP, share="0.95"), "round trip 95 %", unit=Unit.SECONDS),
        Target(_value(WIRE, direction="up"), "wire up", unit=Unit.BYTES),
        Target(_value(WIRE, direction="down"), "wire down", unit=Unit.BYTES),
        Target(
            Ratio(_value("cutlayer_agent_raw_bytes_total"), _value(WIRE)),
            "smaller by",
            unit=Unit.TIMES,
        ),
        Target(_value("cutlayer_agent_steps_total"), "steps", unit=Unit.COUNT),
        Target(_value("cutlayer_agent_resends_total"), "sent again", unit=Unit.COUNT),
        Target(_value("cutlayer_agent_silence_seconds"), "silent for", unit=Unit.SECONDS),
    ),
    width=24,
    height=9,
)


def _number(title: str, description: str, query: Query, *thresholds: Threshold) -> Panel:
    target = Target(query, title.lower())
    return Panel(title, description, Unit.PLAIN, Shape.NUMBER, (target,), 6, 4, thresholds, decimals=0)


NUMBERS: Final = (
    _number(
        "Agents",
        "Sites that hold a lease with a worker right now.",
        Value("cutlayer_agents"),
        Threshold(0, "bad"),
        Threshold(1, "good"),
    ),
    _number("Seen", "Agents that have reported since the worker's start.", Value("cutlayer_agents_seen")),
    Panel(
        "Connected again",
        "Connections to the broker that agents lost and made again, a second, all agents.",
        Unit.PER_SECOND,
        Shape.NUMBER,
        (Target(Rate("cutlayer_reconnects_total", where={"side": "agent"}), "connected again"),),
        width=6,
        height=4,
    ),
    Panel(
        "Bytes of a site",
        "Wire bytes a second for each agent that is there, on average.",
        Unit.BYTES_PER_SECOND,
        Shape.NUMBER,
        (Target(Ratio(Rate("cutlayer_wire_bytes_total"), Value("cutlayer_agents")), "bytes of a site"),),
        width=6,
        height=4,
    ),
)

SITES: Final = Board(
    "cutlayer-sites",
    "Sites",
    "Which site is slow, which costs most, and which has gone?",
    (
        Row("", NUMBERS),
        Row("", (TABLE,)),
        Row(
            "Speed",
            (
                _by_site(
                    "Round trip, 95 %",
                    "Time within which nineteen of twenty of a site's microbatches are answered, by its last reports.",
                    Unit.SECONDS,
                    _value(ROUND_TRIP, share="0.95"),
                    width=8,
                ),
                _by_site(
                    "Samples a second",
                    "Training samples of each site committed a second.",
                    Unit.PER_SECOND,
                    _rate("cutlayer_agent_samples_total"),
                    width=8,
                ),
                _by_site(
                    "Progress",
                    "Training steps of each site committed, of those it has planned.",
                    Unit.SHARE,
                    _value("cutlayer_agent_progress_ratio"),
                    Shape.BARS,
                    width=8,
                ),
            ),
        ),
        Row(
            "Bytes",
            (
                _by_site(
                    "Wire up", "What each site sends a second.", Unit.BYTES_PER_SECOND, _rate(WIRE, direction="up")
                ),
                _by_site(
                    "Wire down",
                    "What each site receives a second.",
                    Unit.BYTES_PER_SECOND,
                    _rate(WIRE, direction="down"),
                ),
            ),
        ),
        Row(
            "Trouble",
            (
                _by_site(
                    "Sent again",
                    "Messages that each site sent again, a second: a link that loses packets.",
                    Unit.PER_SECOND,
                    _rate("cutlayer_agent_resends_total"),
                ),
                _by_site(
                    "Silent for",
                    "Time since each site's last report.",
                    Unit.SECONDS,
                    _value("cutlayer_agent_silence_seconds"),
                ),
            ),
        ),
    ),
)
"""One agent beside another."""
