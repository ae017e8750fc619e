"""The table of agents: bounded, by bytes, with the rest together, and round trips of the last reports only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from cutlayer.broker.messages import Telemetry
from cutlayer.broker.telemetry import LogHistogram
from cutlayer.dashboards.catalogue import AGENT_METRICS
from cutlayer.server_worker.agent_table import MAX_TOP, AgentTable
from support.manual_clock import ManualClock
from support.synthetic_run import NUM_EPOCHS, STEPS_PER_EPOCH, synthetic_telemetry

WIRE = "cutlayer_agent_wire_bytes_total"
ROUND_TRIP = "cutlayer_agent_round_trip_seconds"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def table(clock: ManualClock) -> AgentTable:
    return AgentTable(clock)


def report(sent: int, *, incarnation: int = 1, received: int = 0, round_trips: Iterable[float] = ()) -> Telemetry:
    histogram = LogHistogram()
    for seconds in round_trips:
        histogram.add(seconds)
    return replace(
        synthetic_telemetry(1, incarnation=incarnation),
        wire_sent_bytes=sent,
        wire_received_bytes=received,
        round_trips=histogram.counts(),
    )


def listed(table: AgentTable, top: int = 20) -> dict[str, float]:
    return {
        labels[0]: value for (name, labels), value in table.numbers(top).items() if (name, labels[-1]) == (WIRE, "up")
    }


def test_one_agent_has_every_metric_of_the_catalogue(table: AgentTable) -> None:
    telemetry = synthetic_telemetry(1)
    table.take("clinic/07", telemetry, None)
    numbers = table.numbers()
    assert {name for name, _ in numbers} == {entry.name for entry in AGENT_METRICS}
    for name, labels in numbers:
        entry = next(entry for entry in AGENT_METRICS if entry.name == name)
        assert len(labels) == len(entry.labels)
    assert numbers["cutlayer_agent_steps_total", ("clinic/07",)] == STEPS_PER_EPOCH
    assert numbers["cutlayer_agent_progress_ratio", ("clinic/07",)] == pytest.approx(1 / NUM_EPOCHS)
    assert numbers[WIRE, ("clinic/07", "down")] == telemetry.wire_received_bytes


def test_the_agents_with_most_bytes_are_listed_and_the_rest_is_added_up(table: AgentTable) -> None:
    for index in range(10):
        table.take(f"clinic/{index:02d}", report(1_000 * index), None)
    assert listed(table, top=2) == {"clinic/09": 9_000, "clinic/08": 8_000, "other": 28_000}


def test_no_more_than_the_cap_are_listed(table: AgentTable) -> None:
    for index in range(MAX_TOP + 50):
        table.take(f"clinic/{index}", report(1), None)
    shown = listed(table, top=10_000)
    assert len(shown) == MAX_TOP + 1
    assert shown["other"] == 50


def test_who_has_been_silent_for_long_is_counted_with_the_rest(table: AgentTable, clock: ManualClock) -> None:
    table.take("clinic/07", report(5_000), None)
    clock.now_s += 800.0
    table.take("clinic/08", report(100), None)
    assert table.numbers()["cutlayer_agent_silence_seconds", ("clinic/07",)] == 800.0
    clock.now_s += 100.0
    assert listed(table) == {"clinic/08": 100, "other": 5_000}
    table.take("clinic/07", report(5_001), report(5_000))
    assert listed(table) == {"clinic/07": 5_001, "clinic/08": 100, "other": 0}


def test_an_agent_with_the_name_of_the_rest_is_part_of_it(table: AgentTable) -> None:
    table.take("other", report(70), None)
    table.take("clinic/07", report(30), None)
    assert listed(table) == {"clinic/07": 30, "other": 70}


def test_processes_of_an_agent_are_added_up(table: AgentTable) -> None:
    first = report(1_000, incarnation=1)
    table.take("clinic/07", first, None)
    table.take("clinic/07", report(300, incarnation=2), None)
    table.take("clinic/07", report(1_100, incarnation=1), first)  # last words of the first
    assert listed(table)["clinic/07"] == 1_400


def test_round_trips_are_those_of_the_last_reports(table: AgentTable, clock: ManualClock) -> None:
    before = None
    for second in range(60):
        slow, quick = min(second, 20) * [2.0], max(second - 20, 0) * [0.1]
        now = report(1, round_trips=slow + quick)
        table.take("clinic/07", now, before)
        before = now
        clock.now_s += 1.0
    numbers = table.numbers()
    assert numbers[ROUND_TRIP, ("clinic/07", "0.5")] == pytest.approx(0.1, rel=0.03)
    assert numbers[ROUND_TRIP, ("clinic/07", "0.95")] == pytest.approx(0.1, rel=0.03)


def test_round_trips_of_a_new_process_are_its_own(table: AgentTable) -> None:
    table.take("clinic/07", report(1, incarnation=1, round_trips=[2.0] * 50), None)
    table.take("clinic/07", report(1, incarnation=2, round_trips=[0.1] * 5), None)
    assert table.numbers()[ROUND_TRIP, ("clinic/07", "0.95")] == pytest.approx(0.1, rel=0.03)


def test_an_agent_without_round_trips_has_none(table: AgentTable) -> None:
    table.take("clinic/07", report(1), None)
    assert ROUND_TRIP not in {name for name, _ in table.numbers()}
