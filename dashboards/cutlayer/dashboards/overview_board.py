"""The overview: the page to open first. The worker's own page and `cutlayer top` draw it from snapshots, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cutlayer.dashboards.panels import Board, Panel, Row, Shape, Target, Threshold, Unit
from cutlayer.dashboards.query import Mean, Quantile, Query, Rate, Ratio, Top, Value

__all__ = [
    "ACCURACY",
    "BANDWIDTH",
    "BROKER",
    "OVERVIEW",
    "ROUND_TRIP",
    "ROUND_TRIPS",
    "SAVED",
    "SENT_AGAIN",
    "STAGES",
    "TASK_METRIC",
    "TROUBLE",
    "run_bytes",
]


def wire_rate(direction: str) -> Query:
    """Return wire bytes a second in one direction, all agents."""
    return Rate("cutlayer_wire_bytes_total", where={"direction": direction})


def run_bytes(measure: str, *directions: str) -> Query:
    """Return the run's bytes so far: raw, payload or wire; both directions when none is named."""
    where: dict[str, str | tuple[str, ...]] = {"measure": measure}
    if directions:
        where["direction"] = directions
    return Value("cutlayer_run_bytes", where=where)


def as_told(query: Query) -> Query:
    """Return a query of the broker's own figures that is absent, and not 0, where the broker tells none."""
    return Ratio(query, Value("cutlayer_broker_reports"))


LATENCY_THRESHOLDS: Final = (Threshold(0, "good"), Threshold(1, "warn"), Threshold(5, "bad"))
ROUND_TRIP: Final = "cutlayer_round_trip_seconds"
SENT_AGAIN: Final = Ratio(
    Rate("cutlayer_resends_total"),
    Rate("cutlayer_messages_total", where={"direction": "up", "kind": ("Activations", "OutputGradients")}),
)
"""Messages that agents sent again, of those that carry tensors."""

NUMBERS: Final = (
    Panel(
        "Agents",
        "Sites that hold a lease with a worker right now.",
        Unit.PLAIN,
        Shape.NUMBER,
        (Target(Value("cutlayer_agents"), "agents"),),
        width=3,
        height=4,
        thresholds=(Threshold(0, "bad"), Threshold(1, "good")),
        decimals=0,
    ),
    Panel(
        "Progress",
        "Training steps committed of those that all agents have planned.",
        Unit.SHARE,
        Shape.NUMBER,
        (Target(Value("cutlayer_run_progress_ratio"), "progress"),),
        width=3,
        height=4,
        decimals=0,
    ),
    Panel(
        "Samples/s",
        "Training samples committed a second, all agents together.",
        Unit.PER_SECOND,
        Shape.NUMBER,
        (Target(Rate("cutlayer_samples_total"), "samples/s"),),
        width=3,
        height=4,
    ),
    Panel(
        "Wire up",
        "All that agents send a second, MQTT packets with everything around the tensors.",
        Unit.BYTES_PER_SECOND,
        Shape.NUMBER,
        (Target(wire_rate("up"), "up", "up"),),
        width=3,
        height=4,
    ),
    Panel(
        "Wire down",
        "All that agents receive a second, MQTT packets with everything around the tensors.",
        Unit.BYTES_PER_SECOND,
        Shape.NUMBER,
        (Target(wire_rate("down"), "down", "down"),),
        width=3,
        height=4,
    ),
    Panel(
        "Smaller by",
        "What the tensors would have taken as float32, by what crossed the wire, over the run so far: what the codec "
        "saves after all overhead is paid. Below 1 the run sends more than it would without a codec.",
        Unit.TIMES,
        Shape.NUMBER,
        (Target(Ratio(run_bytes("raw"), run_bytes("wire")), "raw / wire"),),
        width=3,
        height=4,
        thresholds=(Threshold(0, "bad"), Threshold(1.2, "good")),
        decimals=1,
    ),
    Panel(
        "Round trip, 95 %",
        "Nineteen of twenty microbatches have their outputs back within this time, all agents together. A slow "
        "site sends few of them and hardly counts here: see the slowest sites.",
        Unit.SECONDS,
        Shape.NUMBER,
        (Target(Quantile(ROUND_TRIP, share=0.95), "p95"),),
        width=3,
        height=4,
        thresholds=LATENCY_THRESHOLDS,
    ),
    Panel(
        "Sent again",
        "Messages that agents had to send again, of the microbatches' messages: lost packets, silent workers.",
        Unit.SHARE,
        Shape.NUMBER,
        (Target(SENT_AGAIN, "sent again"),),
        width=3,
        height=4,
        thresholds=(Threshold(0, "good"), Threshold(0.01, "warn"), Threshold(0.05, "bad")),
        decimals=1,
    ),
)

BANDWIDTH: Final = Panel(
    "Bandwidth by direction",
    "Wire bytes a second, all agents: up above the line, down below it. The longer side costs more.",
    Unit.BYTES_PER_SECOND,
    Shape.LINES,
    (Target(wire_rate("up"), "up", "up"), Target(wire_rate("down"), "down", "down", is_below=True)),
)
ROUND_TRIPS: Final = Panel(
    "Round trip",
    "Activations sent until their outputs are received, timed at the agent, waiting and arithmetic included.",
    Unit.SECONDS,
    Shape.LINES,
    (
        Target(Quantile(ROUND_TRIP, share=0.5), "50 %", "good"),
        Target(Quantile(ROUND_TRIP, share=0.95), "95 %", "warn"),
        Target(Quantile(ROUND_TRIP, share=0.99), "99 %", "bad"),
    ),
)
STAGES: Final = Panel(
    "Where the time of a step goes",
    "Mean time of each stage, stacked. Tokenize, encode, network and loss are timed at the agents, the others at the "
    "worker; decode, forward, publish and backward are of a whole group of microbatches.",
    Unit.SECONDS,
    Shape.STACK,
    (Target(Mean("cutlayer_stage_seconds", ("stage",)), "{{stage}}"),),
)
ACCURACY: Final = Panel(
    "Accuracy",
    "Share of samples that the model gets right: train over the agents' last reports, test over their own test "
    "samples after each epoch.",
    Unit.SHARE,
    Shape.LINES,
    (Target(Value("cutlayer_accuracy_ratio", ("split",)), "{{split}}"),),
    empty_text="nothing yet, or the task has another metric",
)
TASK_METRIC: Final = Panel(
    "Metric of the task",
    "What models are compared by where the task is not to choose one class: micro-F1 of several, mean absolute error "
    "of numbers. Train over the agents' last reports, test over their own test samples after each epoch.",
    Unit.PLAIN,
    Shape.LINES,
    (
        Target(
            Value("cutlayer_task_metric", ("split", "metric", "better")),
            "{{split}}: {{metric}} ({{better}} is better)",
        ),
    ),
    width=8,
    decimals=3,
    empty_text="nothing yet, or the task has an accuracy",
)
SAVED: Final = Panel(
    "What the codec saves",
    "Bytes of the run so far: the tensors as float32 (raw), what the codec makes of them (payload), and all that "
    "crossed the wire. Raw to payload is saved by the codec, payload to wire is added by MQTT. Payload counts what is "
    "handed over, so it may be ahead of the wire while a slow link has some to send.",
    Unit.BYTES,
    Shape.BARS,
    (
        Target(run_bytes("raw"), "raw", "raw"),
        Target(run_bytes("payload"), "payload", "payload"),
        Target(run_bytes("wire"), "wire", "wire"),
    ),
    width=8,
)
SLOWEST_SITES: Final = Panel(
    "Slowest sites",
    "Round trip within which nineteen of twenty of a site's microbatches are answered, the longest five, over its "
    "last reports. A site that stands out has a slow link or a busy machine.",
    Unit.SECONDS,
    Shape.BARS,
    (
        Target(
            Top(Value("cutlayer_agent_round_trip_seconds", ("agent",), {"share": "0.95"}), 5),
            "{{agent}}",
        ),
    ),
    width=8,
    thresholds=LATENCY_THRESHOLDS,
)
HEAVIEST: Final = Panel(
    "Bytes by direction and message",
    "Wire bytes a second by direction and kind of message, the largest six: what to compress, or "
    "send less often; mqtt is what MQTT itself adds.",
    Unit.BYTES_PER_SECOND,
    Shape.BARS,
    (
        Target(
            Top(Rate("cutlayer_wire_bytes_total", ("direction", "kind")), 6),
            "{{kind}} {{direction}}",
        ),
    ),
    width=8,
)
TROUBLE: Final = Panel(
    "What goes wrong",
    "Messages a second that were sent again, came twice or were not taken, and connections made again. All near zero "
    "in a healthy run.",
    Unit.PER_SECOND,
    Shape.LINES,
    (
        Target(Rate("cutlayer_resends_total"), "sent again", "warn"),
        Target(Rate("cutlayer_duplicates_total"), "came twice", "neutral"),
        Target(Rate("cutlayer_rejects_total"), "not taken", "bad"),
        Target(Rate("cutlayer_reconnects_total"), "connected again", "raw"),
    ),
)
BROKER: Final = Panel(
    "Broker",
    "What the broker itself counts, where it tells of itself under $SYS: bytes received and sent, all clients. With "
    "one worker each byte crosses it twice.",
    Unit.BYTES_PER_SECOND,
    Shape.LINES,
    (
        Target(as_told(Rate("cutlayer_broker_received_bytes_total")), "received", "up"),
        Target(as_told(Rate("cutlayer_broker_sent_bytes_total")), "sent", "down"),
    ),
    empty_text="this broker tells nothing of itself ($SYS)",
)

OVERVIEW: Final = Board(
    "cutlayer-overview",
    "Overview",
    "Is the run well, which site is slow, which direction costs most, and what does the codec save?",
    (
        Row("", NUMBERS),
        Row("", (SAVED, HEAVIEST, SLOWEST_SITES)),
        Row("", (BANDWIDTH, ROUND_TRIPS)),
        Row("", (replace(STAGES, width=8), replace(ACCURACY, width=8), TASK_METRIC)),
        Row("Errors and broker", (TROUBLE, BROKER)),
    ),
)
"""The page to open first; the same panels in Grafana, at the worker and in the terminal."""
