"""The page on bytes: what the training sends, what that costs, and what the codec saves."""

from __future__ import annotations

import math
from typing import Final

from cutlayer.dashboards.overview_board import BANDWIDTH, SAVED, run_bytes
from cutlayer.dashboards.panels import Board, Panel, Row, Shape, Target, Threshold, Unit
from cutlayer.dashboards.query import Buckets, Increase, Minus, Query, Rate, Ratio, Times, Top, Value

__all__ = ["COMMUNICATION", "DEFAULT_PRICE_PER_GB", "PRICE_VARIABLE"]

PRICE_VARIABLE: Final = "price_per_gb"
DEFAULT_PRICE_PER_GB: Final = 0.09
"""US dollars; what a large cloud asks for a gigabyte that leaves it. A field on the page changes it."""
DAY_S: Final = 86_400.0
GB: Final = 1e9

WIRE: Final = "cutlayer_wire_bytes_total"
TENSOR_CODECS: Final = {"codec": "codec"}
"""The dashboard's variable lists the codecs of tensors only: messages without any have no ratio."""


def _priced(num_bytes: Query) -> Query:
    return Times(Times(num_bytes, 1 / GB), DEFAULT_PRICE_PER_GB, PRICE_VARIABLE)


WIRE_A_DAY: Final = Times(Rate(WIRE), DAY_S)
WIRE_A_DAY_AND_SITE: Final = Ratio(WIRE_A_DAY, Value("cutlayer_agents"))
FEDERATED: Final = Value("cutlayer_federated_averaging_bytes")


def _number(title: str, description: str, unit: Unit, query: Query, *thresholds: Threshold) -> Panel:
    target = Target(query, title.lower())
    return Panel(title, description, unit, Shape.NUMBER, (target,), width=4, height=4, thresholds=thresholds)


def _sizes(direction: str) -> Panel:
    return Panel(
        f"Message size, {direction}",
        f"Messages with tensors that went {direction}, by size, a second: chunks put together, as workers see them.",
        Unit.BYTES,
        Shape.HEATMAP,
        (Target(Buckets("cutlayer_message_size_bytes", where={"direction": direction}), "{{le}}"),),
    )


NUMBERS: Final = (
    _number("Wire bytes so far", "All MQTT packets of all agents, both directions.", Unit.BYTES, run_bytes("wire")),
    _number(
        "Bytes a sample",
        "Wire bytes for each training sample committed, over the time shown; evaluation is paid by them, too.",
        Unit.BYTES,
        Ratio(Increase(WIRE), Increase("cutlayer_samples_total")),
    ),
    _number(
        "Bytes an epoch",
        "Wire bytes of the run so far, for each epoch committed.",
        Unit.BYTES,
        Ratio(run_bytes("wire"), Value("cutlayer_run_epochs")),
    ),
    _number(
        "Bytes a site",
        "Wire bytes of the run so far, for each agent that has reported.",
        Unit.BYTES,
        Ratio(run_bytes("wire"), Value("cutlayer_agents_seen")),
    ),
    _number(
        "Saved against float32",
        "Tensors as float32, less all that crossed the wire. Below zero the run sends more than it would have raw.",
        Unit.BYTES,
        Minus(run_bytes("raw"), run_bytes("wire")),
        Threshold(-math.inf, "bad"),
        Threshold(0, "good"),
    ),
    _number(
        "Saved against averaging",
        "What federated averaging of the same model would have moved for the epochs so far (computed, not measured), "
        "less all that crossed the wire. Below zero averaging would have been cheaper.",
        Unit.BYTES,
        Minus(FEDERATED, run_bytes("wire")),
        Threshold(-math.inf, "warn"),
        Threshold(0, "good"),
    ),
)

RAW_PAYLOAD_WIRE: Final = Panel(
    "Raw, payload, wire",
    "Bytes a second, both directions: tensors as float32 (raw), MQTT payloads, all packets (wire). Raw to payload is "
    "saved by the codec, payload to wire is added by MQTT.",
    Unit.BYTES_PER_SECOND,
    Shape.LINES,
    (
        Target(Rate("cutlayer_raw_bytes_total"), "raw", "raw"),
        Target(Rate("cutlayer_payload_bytes_total"), "payload", "payload"),
        Target(Rate(WIRE), "wire", "wire"),
    ),
)
A_SAMPLE: Final = Panel(
    "Bytes a sample by direction",
    "Wire bytes for each training sample committed, at present. It rises while agents evaluate or send again.",
    Unit.BYTES,
    Shape.LINES,
    tuple(
        Target(
            Ratio(Rate(WIRE, where={"direction": direction}), Rate("cutlayer_samples_total")),
            direction,
            "up" if direction == "up" else "down",
        )
        for direction in ("up", "down")
    ),
)
BY_CODEC: Final = Panel(
    "By codec and direction",
    "Wire bytes a second by codec and direction; none stands for messages without tensors and for MQTT's own packets.",
    Unit.BYTES_PER_SECOND,
    Shape.STACK,
    (Target(Rate(WIRE, ("codec", "direction")), "{{codec}} {{direction}}"),),
)
CODEC_RATIO: Final = Panel(
    "Ratio by codec",
    "Tensors as float32, by the payloads that carry them, for each codec chosen above: higher is better. A codec that "
    "falls towards 1 meets data that it cannot make smaller.",
    Unit.TIMES,
    Shape.LINES,
    (
        Target(
            Ratio(
                Rate("cutlayer_raw_bytes_total", ("codec",), variables=TENSOR_CODECS),
                Rate("cutlayer_payload_bytes_total", ("codec",), variables=TENSOR_CODECS),
            ),
            "{{codec}}",
        ),
    ),
    decimals=2,
)
BY_KIND: Final = Panel(
    "Bytes by kind of message",
    "Wire bytes over the time shown, by direction and kind of message, the largest ten; mqtt stands for packets that "
    "carry no message, such as PUBACK.",
    Unit.BYTES,
    Shape.BARS,
    (Target(Top(Increase(WIRE, ("direction", "kind")), 10), "{{kind}} {{direction}}"),),
)
UPLINK: Final = Panel(
    "Codec changes and waiting for the uplink",
    "Steps up and down the ladder of codecs a second, and seconds a second that microbatches wait for --max-uplink: "
    "all agents together, so with four of them 4 is the most. Waiting without a change: no codec of the ladder that "
    "the accuracy guard allows is small enough.",
    Unit.PER_SECOND,
    Shape.LINES,
    (
        Target(Rate("cutlayer_codec_changes_total"), "codec changes", "warn"),
        Target(Rate("cutlayer_paced_seconds_total"), "seconds waited", "neutral"),
    ),
    width=24,
)
MESSAGES: Final = Panel(
    "Messages by kind",
    "Messages a second that agents sent and received, by direction and kind, the eight most frequent.",
    Unit.PER_SECOND,
    Shape.LINES,
    (Target(Top(Rate("cutlayer_messages_total", ("direction", "kind")), 8), "{{kind}} {{direction}}"),),
)
BOTH_ENDS: Final = Panel(
    "Counted at both ends",
    "Payload bytes a second as the agents count them and as the workers do. The lines lie on each other but for what "
    "is under way; a lasting gap is a loss.",
    Unit.BYTES_PER_SECOND,
    Shape.LINES,
    (
        Target(Rate("cutlayer_payload_bytes_total", where={"direction": "up"}), "agents up", "up"),
        Target(Rate("cutlayer_worker_payload_bytes_total", where={"direction": "up"}), "workers up", "neutral"),
        Target(Rate("cutlayer_payload_bytes_total", where={"direction": "down"}), "agents down", "down", is_below=True),
        Target(
            Rate("cutlayer_worker_payload_bytes_total", where={"direction": "down"}),
            "workers down",
            "neutral",
            is_below=True,
        ),
    ),
)
ALTERNATIVES: Final = Panel(
    "Against the alternatives",
    "Bytes of the run so far on the wire, beside what its tensors take as float32 and what federated averaging of the "
    "same model would have moved for as many epochs (computed).",
    Unit.BYTES,
    Shape.BARS,
    (
        Target(run_bytes("wire"), "this run, wire", "wire"),
        Target(run_bytes("raw"), "as float32", "raw"),
        Target(FEDERATED, "federated averaging", "neutral"),
    ),
    width=8,
)
ACCURACY_AGAINST_BYTES: Final = Panel(
    "Accuracy against bytes",
    "Share of samples that are right, or the task's own metric, against the wire bytes spent so far: where the line "
    "turns flat, more bytes buy little.",
    Unit.SHARE,
    Shape.AGAINST,
    (
        Target(run_bytes("wire"), "wire bytes", unit=Unit.BYTES),
        Target(Value("cutlayer_accuracy_ratio", where={"split": "train"}), "train", "neutral"),
        Target(Value("cutlayer_accuracy_ratio", where={"split": "test"}), "test", "good"),
        Target(
            Value("cutlayer_task_metric", where={"split": "train"}), "train, task's metric", "neutral", unit=Unit.PLAIN
        ),
        Target(Value("cutlayer_task_metric", where={"split": "test"}), "test, task's metric", "good", unit=Unit.PLAIN),
    ),
    width=8,
)
COST: Final = (
    _number(
        "A day at this rate",
        "Wire bytes that a day of the present rate would take, all agents.",
        Unit.BYTES,
        WIRE_A_DAY,
    ),
    _number(
        "A day and site",
        "Wire bytes that a day of the present rate would take, for each agent that is there.",
        Unit.BYTES,
        WIRE_A_DAY_AND_SITE,
    ),
    _number(
        "Cost so far",
        "Wire bytes of the run so far, at the price per GB above.",
        Unit.MONEY,
        _priced(run_bytes("wire")),
    ),
    _number(
        "Cost of a day",
        "A day of the present rate, all agents, at the price per GB above.",
        Unit.MONEY,
        _priced(WIRE_A_DAY),
    ),
    _number(
        "Cost of a day and site",
        "A day of the present rate, for each agent that is there, at the price per GB above.",
        Unit.MONEY,
        _priced(WIRE_A_DAY_AND_SITE),
    ),
    _number(
        "Cost of an epoch",
        "Wire bytes of the run so far for each epoch committed, at the price per GB above.",
        Unit.MONEY,
        _priced(Ratio(run_bytes("wire"), Value("cutlayer_run_epochs"))),
    ),
)

COMMUNICATION: Final = Board(
    "cutlayer-communication",
    "Communication cost",
    "What does the training send, what does that cost, and what does the codec save?",
    (
        Row("", NUMBERS),
        Row("What it saves", (SAVED, ALTERNATIVES, ACCURACY_AGAINST_BYTES)),
        Row("Where the bytes go", (RAW_PAYLOAD_WIRE, BANDWIDTH, A_SAMPLE, CODEC_RATIO, BY_CODEC, BY_KIND, UPLINK)),
        Row("Messages", (MESSAGES, BOTH_ENDS, _sizes("up"), _sizes("down"))),
        Row("What it costs", COST),
    ),
)
"""Bytes and money."""
