"""The page on machines: the broker as it sees itself, the workers, and their pool."""

from __future__ import annotations

from typing import Final

from cutlayer.dashboards.overview_board import BROKER, TROUBLE
from cutlayer.dashboards.panels import Board, Panel, Row, Shape, Target, Threshold, Unit
from cutlayer.dashboards.query import Increase, Quantile, Query, Rate, Top, Value, Written

__all__ = ["BROKER_AND_POOL", "STANDARD_METRICS"]

STANDARD_METRICS: Final = (
    "ALERTS",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "up",
)
"""What the boards read that the catalogue does not declare: Prometheus' client library and Prometheus write it."""

NO_SYS: Final = "this broker tells nothing of itself ($SYS)"
ROUND: Final = "cutlayer_pool_round_seconds"


def _number(
    title: str,
    description: str,
    query: Query,
    *thresholds: Threshold,
    unit: Unit = Unit.PLAIN,
    empty_text: str = "",
) -> Panel:
    return Panel(
        title,
        description,
        unit,
        Shape.NUMBER,
        (Target(query, title.lower()),),
        width=4,
        height=4,
        thresholds=thresholds,
        empty_text=empty_text,
    )


def _lines(title: str, description: str, unit: Unit, *targets: Target, width: int = 8, empty_text: str = "") -> Panel:
    return Panel(title, description, unit, Shape.LINES, targets, width=width, empty_text=empty_text)


def _process(title: str, description: str, unit: Unit, text: str, name: str) -> Panel:
    return _lines(title, description, unit, Target(Written(text, (name,)), "{{instance}}"))


NUMBERS: Final = (
    _number(
        "Workers connected",
        "Workers whose connection to the broker is up.",
        Value("cutlayer_broker_connected"),
        Threshold(0, "bad"),
        Threshold(1, "good"),
    ),
    _number(
        "Workers online",
        "Workers of the run that are online, as the workers see each other.",
        Value("cutlayer_workers"),
    ),
    _number(
        "Clients",
        "Clients that are connected to the broker: agents, workers, watchers.",
        Value("cutlayer_broker_clients"),
        empty_text=NO_SYS,
    ),
    _number(
        "Dropped",
        "PUBLISH packets that the broker has dropped, in all: its queues were full, and the senders send again.",
        Value("cutlayer_broker_publish_dropped_total"),
        Threshold(0, "good"),
        Threshold(1, "warn"),
        unit=Unit.COUNT,
        empty_text=NO_SYS,
    ),
    _number(
        "Retained",
        "Messages that the broker keeps: states, the manifest, the agents' weights.",
        Value("cutlayer_broker_retained_messages"),
        unit=Unit.COUNT,
        empty_text=NO_SYS,
    ),
    _number(
        "Broker up for",
        "Time since the broker's start.",
        Value("cutlayer_broker_uptime_seconds"),
        unit=Unit.SECONDS,
        empty_text=NO_SYS,
    ),
)
PAYLOADS: Final = _lines(
    "Broker, payloads",
    "MQTT payloads a second that the broker has received and sent, all clients.",
    Unit.BYTES_PER_SECOND,
    Target(Rate("cutlayer_broker_publish_received_bytes_total"), "received", "up"),
    Target(Rate("cutlayer_broker_publish_sent_bytes_total"), "sent", "down"),
    empty_text=NO_SYS,
)
PACKETS: Final = _lines(
    "Broker, packets",
    "PUBLISH packets a second that the broker has received, sent and dropped.",
    Unit.PER_SECOND,
    Target(Rate("cutlayer_broker_publish_received_total"), "received", "up"),
    Target(Rate("cutlayer_broker_publish_sent_total"), "sent", "down"),
    Target(Rate("cutlayer_broker_publish_dropped_total"), "dropped", "bad"),
    empty_text=NO_SYS,
)
MEMORY: Final = _lines(
    "Broker, memory",
    "Memory that the broker uses, and the most that it may have to hold for the workers and for one agent. Above the "
    "budget something else lives in this broker.",
    Unit.BYTES,
    Target(Value("cutlayer_broker_heap_bytes"), "used", "wire"),
    Target(Value("cutlayer_broker_budget_bytes"), "budget of all", "warn"),
    Target(Value("cutlayer_agent_budget_bytes"), "budget of one agent", "neutral"),
    empty_text=NO_SYS,
)
TELLS: Final = _lines(
    "Broker tells of itself",
    "1 where the broker publishes figures under $SYS and the worker may read them.",
    Unit.PLAIN,
    Target(Value("cutlayer_broker_reports"), "tells", "good"),
)
WORKER_WIRE: Final = _lines(
    "Workers, wire",
    "All MQTT packets of the workers' own connections: up is what they receive, down what they send.",
    Unit.BYTES_PER_SECOND,
    Target(Rate("cutlayer_worker_wire_bytes_total", where={"direction": "up"}), "up", "up"),
    Target(Rate("cutlayer_worker_wire_bytes_total", where={"direction": "down"}), "down", "down", is_below=True),
)
REJECTS: Final = Panel(
    "Not taken, by reason",
    "Messages that were not taken over the time shown, by who refused them and why, the most frequent eight.",
    Unit.COUNT,
    Shape.BARS,
    (Target(Top(Increase("cutlayer_rejects_total", ("side", "reason")), 8), "{{side}}: {{reason}}"),),
)
POOL: Final = (
    _lines(
        "Workers in a round",
        "Workers in the last round of the pool, and those that are online. They differ while one joins or has died.",
        Unit.PLAIN,
        Target(Value("cutlayer_pool_workers"), "in the last round", "good"),
        Target(Value("cutlayer_workers"), "online", "neutral"),
    ),
    _lines(
        "Rounds",
        "Rounds a second with the other workers, by result. A failed one is held again with those that are left.",
        Unit.PER_SECOND,
        Target(Rate("cutlayer_pool_rounds_total", where={"result": "ok"}), "ok", "good"),
        Target(Rate("cutlayer_pool_rounds_total", where={"result": "failed"}), "failed", "bad"),
    ),
    _lines(
        "Time of a round",
        "Quorum, sums and vote of one round.",
        Unit.SECONDS,
        Target(Quantile(ROUND, share=0.5), "50 %", "good"),
        Target(Quantile(ROUND, share=0.95), "95 %", "warn"),
        empty_text="no round in the time shown: one worker alone holds none",
    ),
    _lines(
        "Takeovers",
        "Times that workers took over the pool's weights: after joining, or after missing a round.",
        Unit.COUNT,
        Target(Value("cutlayer_pool_takeovers_total"), "takeovers", "neutral"),
    ),
    _lines(
        "Checkpoints",
        "Window of the last checkpoint.",
        Unit.COUNT,
        Target(Value("cutlayer_checkpoint_window"), "window", "neutral"),
    ),
    _lines(
        "Time of a checkpoint",
        "Time that the last checkpoint took.",
        Unit.SECONDS,
        Target(Value("cutlayer_checkpoint_seconds"), "time", "neutral"),
    ),
)
BUILD: Final = Panel(
    "What runs",
    "Name, model and version of each worker.",
    Unit.PLAIN,
    Shape.TABLE,
    (
        Target(
            Written("max by (worker, model, version, instance) (cutlayer_build_info{MATCHERS})", ("cutlayer_build",)),
            "present",
        ),
    ),
    width=12,
    height=6,
)
FIRING: Final = Panel(
    "Alerts that fire",
    "What Prometheus' rules find wrong; each rule says in its annotations what to do.",
    Unit.PLAIN,
    Shape.TABLE,
    (
        Target(
            Written(
                'max by (alertname, severity, instance) (ALERTS{alertstate="firing",service="cutlayer"})', ("ALERTS",)
            ),
            "firing",
        ),
    ),
    width=12,
    height=6,
    empty_text="none fires",
)

BROKER_AND_POOL: Final = Board(
    "cutlayer-broker",
    "Broker and pool",
    "Are the broker, the workers and their pool well?",
    (
        Row("", NUMBERS),
        Row("", (BUILD, FIRING)),
        Row("Broker", (BROKER, REJECTS, PAYLOADS, PACKETS, MEMORY)),
        Row("Pool", POOL),
        Row(
            "Workers",
            (
                _process(
                    "Workers, CPU",
                    "Processor seconds a second of each worker: 1 is one core.",
                    Unit.PLAIN,
                    "rate(process_cpu_seconds_total{MATCHERS}[WINDOW])",
                    "process_cpu_seconds_total",
                ),
                _process(
                    "Workers, memory",
                    "Resident memory of each worker.",
                    Unit.BYTES,
                    "process_resident_memory_bytes{MATCHERS}",
                    "process_resident_memory_bytes",
                ),
                _process(
                    "Workers, up for",
                    "Time since each worker's start.",
                    Unit.SECONDS,
                    "time() - process_start_time_seconds{MATCHERS}",
                    "process_start_time_seconds",
                ),
                WORKER_WIRE,
                _lines(
                    "Came twice",
                    "Messages a second that came twice, by who got them.",
                    Unit.PER_SECOND,
                    Target(Rate("cutlayer_duplicates_total", ("side",)), "{{side}}"),
                ),
                TELLS,
                TROUBLE,
                _lines(
                    "Scraped",
                    "1 while Prometheus reaches the worker, for each of its two pages.",
                    Unit.PLAIN,
                    Target(Written("up{MATCHERS}", ("up",)), "{{job}} {{instance}}"),
                    width=12,
                ),
            ),
        ),
    ),
)
"""Machines."""
