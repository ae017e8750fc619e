from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from cutlayer.dashboards.catalogue import AGENT_METRICS, METRICS
from cutlayer.dashboards.live_stats import LiveStats, RunFacts
from cutlayer.dashboards.metric_store import MetricStore, SeriesKey
from cutlayer.dashboards.overview_board import OVERVIEW
from support.manual_clock import ManualClock
from support.waiting import ends

FACTS = RunFacts("digits-1", "w0", "vit", "0.1.0", "training")
SITE: Mapping[SeriesKey, float] = {("cutlayer_agent_round_trip_seconds", ("clinic/07", "0.95")): 0.8}


class Desk:
    """A worker's store, and its live numbers under a clock of the test's."""

    def __init__(self, *, keep_s: float = 60.0) -> None:
        self.store = MetricStore((*METRICS, *AGENT_METRICS))
        self.clock = ManualClock()
        self.numbers: dict[SeriesKey, float] = {}
        self.stats = LiveStats(
            {"w0": self.store},
            lambda: FACTS,
            numbers=lambda: self.numbers,
            keep_s=keep_s,
            clock=self.clock,
            wall_clock=lambda: 1_000_000.0,
        )

    def run(self, seconds: int, samples: float = 32.0) -> Desk:
        for _ in range(seconds):
            self.store.add("cutlayer_samples_total", samples)
            self.stats.sample()
            self.clock.now_s += 1.0
        return self


@pytest.fixture
def desk() -> Desk:
    return Desk()


def panel_index(title: str) -> int:
    return next(index for index, panel in enumerate(OVERVIEW.panels) if panel.title == title)


def lines(document: Mapping[str, Any], title: str) -> dict[str, list[float | None]]:
    return {each["name"]: each["values"] for each in document["series"] if each["panel"] == panel_index(title)}


def test_document_tells_of_the_run_and_of_every_panel_of_the_overview(desk: Desk) -> None:
    document = desk.run(3).stats.as_json()
    assert document["run"] == {
        "run": "digits-1", "worker": "w0", "model": "vit", "version": "0.1.0", "phase": "training", "reason": "",
        "is_over": False,
    }  # fmt: skip
    panels = [panel for row in document["board"]["rows"] for panel in row["panels"]]
    assert [panel["title"] for panel in panels] == [panel.title for panel in OVERVIEW.panels]
    assert [panel["index"] for panel in panels] == list(range(len(panels)))
    assert [(panel["unit"], panel["width"], panel["description"]) for panel in panels] == [
        (panel.unit.value, panel.width, panel.description) for panel in OVERVIEW.panels
    ]
    assert all(panel["metrics"] for panel in panels)
    assert document["headlines"][0]["question"] == "Is the run well?"


def test_times_go_with_the_clock_and_values_with_the_store(desk: Desk) -> None:
    start = desk.clock.now_s
    document = desk.run(4).stats.as_json()
    assert document["times"] == [1_000_000.0 + second for second in range(4)]
    assert document["now"] == 1_000_000.0 + desk.clock.now_s - start
    assert lines(document, "Samples/s") == {"samples/s": [None, 32.0, 32.0, 32.0]}


def test_numbers_of_single_agents_are_taken_along(desk: Desk) -> None:
    desk.numbers.update(SITE)
    assert lines(desk.run(1).stats.as_json(), "Slowest sites") == {"clinic/07": [0.8]}


def test_names_of_sites_are_passed_on_as_they_are(desk: Desk) -> None:
    name = '<img src=x onerror="alert(1)">'
    desk.numbers["cutlayer_agent_round_trip_seconds", (name, "0.95")] = 0.8
    assert list(lines(desk.run(1).stats.as_json(), "Slowest sites")) == [name]


def test_directions_have_a_colour_of_their_own_wherever_they_stand(desk: Desk) -> None:
    desk.run(1)
    desk.store.add("cutlayer_wire_bytes_total", 900, "up", "Activations", "int8+zstd")
    desk.store.add("cutlayer_wire_bytes_total", 500, "down", "Outputs", "fp16")
    document = desk.run(1).stats.as_json()
    index = panel_index("Bytes by direction and message")
    colours = {each["name"]: each["colour"] for each in document["series"] if each["panel"] == index}
    assert colours["Activations up"] == "up"
    assert colours["Outputs down"] == "down"


def test_who_asks_again_gets_what_is_new_and_no_board(desk: Desk) -> None:
    first = desk.run(3).stats.as_json()
    second = desk.run(2).stats.as_json(first["taken"], first["boot"])
    assert "board" not in second
    assert second["times"] == [1_000_003.0, 1_000_004.0]
    assert lines(second, "Samples/s") == {"samples/s": [32.0, 32.0]}
    assert second["taken"] == 5


def test_who_has_everything_gets_nothing_twice(desk: Desk) -> None:
    first = desk.run(3).stats.as_json()
    again = desk.stats.as_json(first["taken"], first["boot"])
    assert again["times"] == []
    assert lines(again, "Samples/s") == {"samples/s": []}


@pytest.mark.parametrize(("since", "boot"), [(2, "another process"), (99, ""), (2, "")])
def test_who_has_seen_another_process_starts_over(desk: Desk, since: int, boot: str) -> None:
    document = desk.run(3).stats.as_json(since, boot)
    assert "board" in document
    assert len(document["times"]) == 3


def test_who_was_away_for_longer_than_is_kept_gets_what_is_kept() -> None:
    desk = Desk(keep_s=10.0)
    first = desk.run(3).stats.as_json()
    later = desk.run(40).stats.as_json(first["taken"], first["boot"])
    assert later["kept"] == len(later["times"]) == 10


def test_a_quarter_of_an_hour_is_kept() -> None:
    assert LiveStats({"w0": MetricStore()}, lambda: FACTS).as_json()["kept"] == 900


def test_document_is_json_as_the_standard_has_it(desk: Desk) -> None:
    desk.store.set("cutlayer_run_progress_ratio", float("nan"))
    desk.store.set("cutlayer_accuracy_ratio", float("inf"), "train")
    document = desk.run(2).stats.as_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))


def test_thread_samples_until_the_end(desk: Desk) -> None:
    stats = LiveStats({"w0": desk.store}, lambda: FACTS, interval_s=0.01)
    stats.start()
    reached = threading.Event()
    while not reached.wait(0.01):
        if stats.as_json()["taken"] >= 3:
            reached.set()
    stats.finish(wait_s=0.0)
    document = stats.as_json()
    assert document["run"]["is_over"]
    assert stats.as_json()["taken"] == document["taken"]


def test_store_that_another_thread_writes_is_read_whole(desk: Desk) -> None:
    is_over = threading.Event()

    def write() -> None:
        kinds = 0
        while not is_over.is_set():
            kinds += 1
            desk.store.add("cutlayer_wire_bytes_total", 1, "up", f"kind-{kinds % 500}", "fp16")
            desk.store.observe("cutlayer_stage_seconds", 0.1, "forward")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        document = desk.run(200).stats.as_json()
    finally:
        is_over.set()
        writer.join()
    rates = lines(document, "Wire up")["up"]
    assert all(rate is None or rate >= 0 for rate in rates)


def test_sample_that_fails_is_logged_and_the_next_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    failures: Iterator[bool] = iter([True, True])

    def numbers() -> dict[SeriesKey, float]:
        if next(failures, False):
            raise RuntimeError("the table is empty")
        return {}

    stats = LiveStats({"w0": MetricStore()}, lambda: FACTS, numbers=numbers, interval_s=0.01)
    with caplog.at_level(logging.ERROR):
        stats.start()
        while not stats.as_json()["taken"]:
            threading.Event().wait(0.01)
        stats.finish(wait_s=0.0)
    assert caplog.text.count("the table is empty") >= 2


def test_end_waits_for_nobody_where_nobody_looks(desk: Desk) -> None:
    desk.run(1).stats.as_json()
    desk.clock.now_s += 60.0
    assert ends(lambda: desk.stats.finish(3_600.0))


def test_end_waits_until_a_page_that_is_open_has_the_last_sample(desk: Desk) -> None:
    seen = desk.run(1).stats.as_json()
    thread = threading.Thread(target=desk.stats.finish, args=(3_600.0,), daemon=True)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    document = seen
    while not document["run"]["is_over"]:
        document = desk.stats.as_json(seen["taken"], seen["boot"])
    assert ends(thread.join)
    assert document["taken"] == seen["taken"] + 1
