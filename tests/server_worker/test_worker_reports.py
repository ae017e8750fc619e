"""What a worker tells of its metrics over the broker."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from cutlayer.broker.messages import MetricSums, StageTime, WorkerReport, parse, serialize
from cutlayer.broker.topics import WORKER_REPORTS, WorkerTopics
from cutlayer.broker.wire import U53
from cutlayer.server_worker.agent_table import AgentTable
from cutlayer.server_worker.events import TelemetryTaken
from cutlayer.server_worker.metrics import WorkerMetrics
from cutlayer.server_worker.worker_reports import WorkerReports
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset, small_settings
from support.synthetic_run import synthetic_manifest, synthetic_telemetry
from support.virtual_run import Client, Worker, run_until_over


def reports_of(network: VirtualNetwork, worker: Worker, client: Client) -> list[WorkerReport]:
    run_until_over(network, worker, [network.add_agent("site/0", small_dataset(0))])
    end_s = network.clock() + 5.0
    network.run(lambda: network.clock() > end_s)  # what is still on its way to the stranger comes
    packets = [packet for packet in client.seen if packet.topic == WorkerTopics("w0").report]
    assert not any(packet.retain for packet in packets)
    return [message for packet in packets if isinstance(message := parse(packet.payload), WorkerReport)]


def test_a_worker_reports_while_it_serves_and_at_its_end() -> None:
    network = VirtualNetwork()
    client = Client(network)
    worker = Worker(network, small_settings(), watches=True)
    reports = reports_of(network, worker, client)
    assert [report.sequence for report in reports] == list(range(1, len(reports) + 1))
    last = reports[-1]
    assert (last.worker, last.incarnation, last.run_id) == ("w0", worker.session.incarnation, "small-0")
    assert last.every_s == 2.0
    numbers = {(entry.name, entry.labels): entry.value for entry in last.numbers}
    assert numbers["cutlayer_steps_total", ()] == 8
    assert numbers["cutlayer_agent_steps_total", ("site/0",)] == 8
    store = worker.metrics.store
    assert numbers["cutlayer_run_bytes", ("up", "wire")] == store.value("cutlayer_run_bytes", "up", "wire")
    distributions = {(entry.name, entry.labels): entry for entry in last.distributions}
    forward = store.distributions()["cutlayer_stage_seconds", ("forward",)]
    assert distributions["cutlayer_stage_seconds", ("forward",)].counts == tuple(forward.counts)
    assert 0.0 not in numbers.values()


def test_a_worker_that_is_not_watched_reports_nothing() -> None:
    network = VirtualNetwork()
    client = Client(network)
    assert not reports_of(network, Worker(network, small_settings()), client)


def test_any_report_fits_its_message() -> None:
    network = VirtualNetwork()
    session = Worker(network, small_settings()).session
    metrics = WorkerMetrics("w0", synthetic_manifest(812_042))
    table = AgentTable()
    for index in range(50):
        table.take(f"{'very-long-level/' * 12}{index:02d}", synthetic_telemetry(), None)
    for entry in metrics.store.numbers():
        metrics.store.set(entry[0], 1.5, *entry[1])
    for name, labels in metrics.store.distributions():
        metrics.store.observe(name, 0.3, *labels)
    metrics.store.set("cutlayer_gradient_norm", math.nan)
    report = WorkerReports(metrics.store, table).make(session)
    assert parse(serialize(report)) == report
    assert "cutlayer_gradient_norm" not in {entry.name for entry in report.numbers}
    assert len(report.numbers) > 300


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param({"round_trips": ((100, U53), (101, U53))}, id="more round trips than a number holds"),
        pytest.param({"stages": (StageTime("loss", 1, 1.7e308, ((100, 1),)),)}, id="longer times than a number holds"),
        pytest.param({"train": MetricSums(1.7e308, 0, 32), "recent": MetricSums(1.7e308, 0, 32)}, id="losses"),
    ],
)
def test_no_number_that_agents_claim_stops_a_worker_from_reporting(claim: dict[str, Any]) -> None:
    session = Worker(VirtualNetwork(), small_settings()).session
    metrics = WorkerMetrics("w0", synthetic_manifest(812_042))
    for agent in ("site/0", "site/1"):
        telemetry = replace(synthetic_telemetry(1), **claim)
        assert parse(serialize(telemetry)) == telemetry, "nothing refuses it"
        metrics(TelemetryTaken(agent, telemetry, None))
    report = WorkerReports(metrics.store, metrics.agents).make(session)
    assert parse(serialize(report)) == report


def test_the_topic_of_reports_matches_its_filter() -> None:
    assert WorkerTopics("w0").report == WORKER_REPORTS.replace("+", "w0")
