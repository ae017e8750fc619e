"""What agents count is added once: whatever process of theirs, of the worker's or of its pool it comes through."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cutlayer.broker.messages import Direction, Telemetry, Traffic
from cutlayer.broker.telemetry import control_traffic
from cutlayer.broker.transport import WireCount
from cutlayer.dashboards.metric_labels import TENSOR_KINDS
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.server_worker.agent_counters import AgentCounters
from cutlayer.server_worker.events import TelemetryTaken
from support.synthetic_run import synthetic_manifest, synthetic_telemetry

WIRE = "cutlayer_wire_bytes_total"
STARTED = 1_000


class Desk:
    """The counters of a worker that joins a run, and what they hold."""

    def __init__(self, *, joins_run: bool = True) -> None:
        self.store = MetricStore()
        self.counters = AgentCounters(self.store, synthetic_manifest(812_042), joins_run=joins_run)

    def take(self, now: Telemetry, before: Telemetry | None = None, *, is_counted_here: bool = True) -> None:
        self.counters.take(TelemetryTaken("clinic/07", now, before, is_counted_here=is_counted_here))

    def wire(self, direction: str) -> float:
        """Return wire bytes over all kinds and codecs."""
        return sum(
            value for (name, labels), value in self.store.numbers().items() if name == WIRE and labels[0] == direction
        )


@pytest.fixture
def desk() -> Desk:
    return Desk()


def report(
    sent: int, *, sequence: int = 1, incarnation: int = STARTED, final: bool = False, lost: int = 0
) -> Telemetry:
    """Return a report of an agent that has sent so many bytes in messages, and some that are in no message."""
    wire = WireCount(sent_bytes=sent + 100 + lost, received_bytes=60, sent_publish_bytes=sent + lost)
    rows = (Traffic(Direction.UP, "Activations", "int8+zstd", 1, 4 * sent, sent // 2, sent), *control_traffic(wire))
    return replace(
        synthetic_telemetry(1, incarnation=incarnation, sequence=sequence),
        traffic=rows,
        wire_sent_bytes=wire.sent_bytes,
        wire_received_bytes=wire.received_bytes,
        final=final,
    )


def test_the_codecs_of_the_run_have_series_from_the_start(desk: Desk) -> None:
    kinds = {
        labels[1]: labels[2] for name, labels in desk.store.numbers() if name == WIRE and labels[1] in TENSOR_KINDS
    }
    codecs = synthetic_manifest(812_042).codecs
    assert kinds == {
        "Activations": codecs.activations,
        "Outputs": codecs.outputs,
        "OutputGradients": codecs.output_gradients,
        "ActivationGradients": "none",
    }


def test_a_codec_without_the_byte_stage_that_the_agent_lacks_keeps_its_name(desk: Desk) -> None:
    rows = tuple(Traffic(Direction.UP, "Activations", codec, 1, 4, 1, 2) for codec in ("int8", "made-up"))
    desk.take(replace(report(0), traffic=rows))
    assert desk.store.value(WIRE, "up", "Activations", "int8") == 2
    assert desk.store.value(WIRE, "up", "Activations", "other") == 2


def test_what_has_grown_since_the_report_before_is_added(desk: Desk) -> None:
    first, second = report(1_000), report(1_500)
    desk.take(first)
    desk.take(second, first)
    assert desk.wire("up") == 1_600
    assert desk.wire("down") == 60


def test_an_agent_that_was_started_again_counts_from_zero(desk: Desk) -> None:
    desk.take(report(1_000))
    desk.take(report(200, incarnation=STARTED + 1))
    assert desk.wire("up") == 1_100 + 300


def test_of_an_agent_that_ran_before_the_worker_only_later_growth_counts(desk: Desk) -> None:
    first, second = report(1_000, sequence=7), report(1_500, sequence=8, final=True, lost=90)
    desk.take(first)
    assert desk.wire("up") == 0
    desk.take(second, first)
    assert desk.wire("up") == 500


def test_a_worker_that_begins_a_run_counts_all_of_an_agent_that_waited_for_it() -> None:
    desk = Desk(joins_run=False)
    desk.take(report(1_000, sequence=3))  # the ones before were lost
    assert desk.wire("up") == 1_100


def test_a_worker_that_becomes_the_first_of_its_pool_counts_from_then_on(desk: Desk) -> None:
    reports = [report(1_000), report(1_500), report(1_700)]
    desk.take(reports[0], is_counted_here=False)
    desk.take(reports[1], reports[0], is_counted_here=False)
    assert desk.wire("up") == 0
    desk.take(reports[2], reports[1])
    assert desk.wire("up") == 200


def test_the_last_report_leaves_no_byte_of_the_connection_out(desk: Desk) -> None:
    first = report(1_000, lost=70)
    desk.take(first)
    assert desk.wire("up") == 1_100
    last = report(1_500, lost=90, final=True)
    desk.take(last, first)
    assert desk.wire("up") == last.wire_sent_bytes == 1_690
    assert desk.store.value(WIRE, "up", "mqtt", "none") == 190


def test_bytes_that_were_handed_over_and_never_left_take_nothing_away(desk: Desk) -> None:
    desk.take(report(1_000, lost=-400, final=True))
    assert desk.store.value(WIRE, "up", "mqtt", "none") == 100
