import json
from dataclasses import replace

import pytest

from cutlayer.broker.messages import RunManifest, RunPhase, SeriesDistribution, SeriesNumber, WorkerReport
from cutlayer.broker.topics import RUN, WORKER_REPORTS, WORKER_STATES, WorkerTopics
from cutlayer.dashboards.overview_board import OVERVIEW
from cutlayer.dashboards.panels import Panel
from cutlayer.dashboards.snapshots import Snapshot, Snapshots, evaluate
from cutlayer.simulation.top_state import as_document
from cutlayer.simulation.top_view import render
from support.reported_run import EVERY_S, Reporters, grown_store, report_of, worker_state
from support.synthetic_run import synthetic_manifest


@pytest.fixture
def reporters() -> Reporters:
    found = Reporters()
    found.start()
    return found


def panel(title: str) -> Panel:
    return next(each for each in OVERVIEW.panels if each.title == title)


def value(reporters: Reporters, title: str, name: str = "") -> float | None:
    lines = reporters.feed.state().lines(panel(title))
    return next((line.value for line in lines if name in ("", line.name)), None)


def test_run_worker_and_phase_are_known_from_what_is_retained(reporters: Reporters) -> None:
    state = reporters.feed.state()
    assert state.manifest is not None
    assert state.manifest.run_id == "digits-4f1c22aa"
    assert [(worker.name, worker.is_online, worker.age_s) for worker in state.workers] == [("worker-0", True, None)]
    assert state.phase is RunPhase.TRAINING


def test_numbers_are_there_from_the_first_report_and_rates_from_the_second(reporters: Reporters) -> None:
    reporters.run(1)
    assert value(reporters, "Agents") == 3
    assert value(reporters, "Wire up") is None
    reporters.report(grown_store(14), 2)
    assert value(reporters, "Wire up") == pytest.approx(2_000_000)
    assert value(reporters, "Samples/s") == pytest.approx(640)
    assert value(reporters, "Smaller by") == pytest.approx(8_030 / 2_020, rel=1e-4)


def test_panels_say_what_the_same_queries_say_of_the_workers_own_store(reporters: Reporters) -> None:
    reporters.run(3)
    own = Snapshots(15.0)
    for sequence in range(1, 4):
        own.add(Snapshot.of(EVERY_S * sequence, {"worker-0": grown_store(10 + EVERY_S * sequence)}))
    state = reporters.feed.state()
    for shown in OVERVIEW.panels:
        lines = state.lines(shown)
        for place, target in enumerate(shown.targets):
            found = [line.value for line in lines if line.target == place and line.value is not None]
            assert sorted(found) == pytest.approx(sorted(evaluate(target.query, own).values()), rel=1e-4), shown.title


def test_only_topics_of_cutlayer_are_read() -> None:
    for topic_filter in (RUN, WORKER_STATES, WORKER_REPORTS):
        assert topic_filter.startswith("cutlayer/")
    reporters = Reporters()
    reporters.start()
    assert reporters.feed._transport.wire.sent_packets == 0


def test_copies_and_late_reports_change_nothing(reporters: Reporters) -> None:
    reporters.run(2)
    for sequence in (2, 1):
        assert not reporters.report(grown_store(99), sequence)
    assert value(reporters, "Progress") == pytest.approx(0.14)


def test_two_workers_make_one_picture_when_both_have_reported(reporters: Reporters) -> None:
    reporters.state(worker_state("worker-1"))
    reporters.report(grown_store(10), 1)
    reporters.report(grown_store(10), 1, worker="worker-1")
    reporters.clock.now_s += EVERY_S
    assert not reporters.report(grown_store(12), 2)
    assert reporters.report(grown_store(12), 2, worker="worker-1")
    # Bytes are parts of a whole; the run's samples are the same number at each worker.
    assert value(reporters, "Wire up") == pytest.approx(4_000_000)
    assert value(reporters, "Samples/s") == pytest.approx(640)


def test_worker_that_falls_silent_is_not_waited_for_and_then_no_longer_counted(reporters: Reporters) -> None:
    reporters.state(worker_state("worker-1"))
    reporters.report(grown_store(10), 1)
    reporters.report(grown_store(10, agents={"east": 0.1}), 1, worker="worker-1")
    for sequence in range(2, 9):
        reporters.clock.now_s += EVERY_S
        reporters.report(grown_store(10 + EVERY_S * sequence), sequence)
    state = reporters.feed.state()
    assert state.workers[1].is_late
    assert state.workers[1].age_s == pytest.approx(14)
    assert "east" not in {row.agent for row in state.agents}
    assert reporters.feed.num_pictures > 2


def test_worker_whose_will_says_that_it_is_gone_no_longer_counts(reporters: Reporters) -> None:
    reporters.run(2)
    pictures = reporters.feed.num_pictures
    reporters.state(worker_state(phase=RunPhase.ENDED, online=False, reason="all agents have done their epochs"))
    assert reporters.feed.state().phase is RunPhase.ENDED
    assert value(reporters, "Agents") == 3  # the last screen stays
    assert reporters.feed.num_pictures == pictures


def test_run_without_a_worker_or_a_connection_is_not_said_to_be_well(reporters: Reporters) -> None:
    reporters.run(2)
    assert reporters.feed.state().headlines[0].meaning == "good"
    reporters.state(worker_state(online=False))
    assert reporters.feed.state().headlines[0].answer == "No: no worker"
    reporters.feed.is_connected = False
    assert reporters.feed.state().headlines[0].answer == "Not known"


def test_worker_that_starts_again_counts_from_zero(reporters: Reporters) -> None:
    reporters.run(2)
    reporters.state(worker_state(incarnation=2_000))
    reporters.report(grown_store(4), 1, incarnation=2_000)
    assert value(reporters, "Samples/s") == pytest.approx(640 * 4 / 4)  # in the 4 s since the first picture
    assert not reporters.report(grown_store(99), 9, incarnation=1_000)


def test_another_run_starts_everything_anew(reporters: Reporters) -> None:
    reporters.run(3)
    other = synthetic_manifest().model_copy(update={"run_id": "digits-00000002"})
    reporters.say(RUN, RunManifest(other.to_bytes()), retain=True)
    assert reporters.feed.num_pictures == 0
    assert not reporters.report(grown_store(20), 4)  # it still reports the run before
    reporters.say(WorkerTopics("worker-0").report, replace(report_of(grown_store(2), 5), run_id="digits-00000002"))
    assert value(reporters, "Progress") == pytest.approx(0.02)


def test_report_of_a_run_that_is_not_announced_is_not_shown() -> None:
    reporters = Reporters()
    reporters.feed.start()
    reporters.pump()
    reporters.state(worker_state())
    assert not reporters.report(grown_store(10), 1)


def test_one_worker_cannot_report_for_another(reporters: Reporters) -> None:
    forged = report_of(grown_store(10), 1)
    assert not reporters.say(WorkerTopics("worker-1").report, forged)
    assert reporters.feed.num_pictures == 0


def test_what_the_catalogue_does_not_know_is_left_out(reporters: Reporters) -> None:
    strange = (
        SeriesNumber("cutlayer_agents", (), 2.0),
        SeriesNumber("cutlayer_of_tomorrow_total", (), 5.0),
        SeriesNumber("cutlayer_agents", ("too", "many"), 5.0),
        SeriesNumber("cutlayer_round_trip_seconds", (), 5.0),
    )
    histograms = (
        SeriesDistribution("cutlayer_round_trip_seconds", (), (1, 2, 3), 6.0),
        SeriesDistribution("cutlayer_stage_seconds", (), (0,) * 17, 6.0),
        SeriesDistribution("cutlayer_agents", (), (0,) * 17, 6.0),
    )
    report = WorkerReport("worker-0", 1_000, 1, "digits-4f1c22aa", EVERY_S, strange, histograms)
    assert reporters.say(WorkerTopics("worker-0").report, report)
    assert value(reporters, "Agents") == 2


@pytest.mark.parametrize("value_of_all", [1e308, -1e308, 5e-324])
def test_values_that_no_worker_can_have_counted_do_not_end_the_screen(
    reporters: Reporters, value_of_all: float
) -> None:
    for sequence in (1, 2):
        for worker in ("worker-0", "worker-1"):
            report = report_of(grown_store(10 * sequence, agents={"clinic/7": 0.1}), sequence, worker=worker)
            numbers = tuple(replace(each, value=value_of_all if sequence == 2 else 0.0) for each in report.numbers)
            distributions = tuple(replace(each, total=value_of_all) for each in report.distributions)
            report = replace(report, numbers=numbers, distributions=distributions)
            reporters.say(WorkerTopics(worker).report, report)
        reporters.clock.now_s += EVERY_S
    state = reporters.feed.state()
    assert state.times
    assert render(state, 120)
    json.dumps(as_document(state), allow_nan=False)


def test_agents_are_told_slowest_first_and_the_rest_last(reporters: Reporters) -> None:
    agents = {"fast": 0.01, "other": 9.0, "slow": 0.9}
    for sequence in (1, 2):
        reporters.report(grown_store(10 * sequence, agents=agents), sequence)
        reporters.clock.now_s += 10
    rows = reporters.feed.state().agents
    assert [row.agent for row in rows] == ["slow", "fast", "other"]
    assert (rows[0].p50_s, rows[0].p95_s) == (0.45, 0.9)
    assert rows[0].wire_bytes_per_s is not None
    assert rows[0].wire_bytes_per_s.up == pytest.approx(700_000)
    assert rows[0].ratio == pytest.approx(2_700 / 707)
    assert (rows[0].resends, rows[0].silence_s) == (0.0, 0.5)
    assert rows[2].wire_bytes_per_s is None, "agents come and go between the list and the rest"
