from __future__ import annotations

import pytest

from cutlayer.dashboards.catalogue import AGENT_METRICS, METRICS
from cutlayer.dashboards.headlines import HEADLINE_METRICS, Headline, headlines
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.dashboards.overview_board import OVERVIEW
from cutlayer.dashboards.snapshots import Snapshot, Snapshots

MB = 1e6


class Desk:
    """A worker's figures over ten seconds."""

    def __init__(self, phase: str = "training", agents: int = 4, *, connected: bool = True) -> None:
        self.store = MetricStore((*METRICS, *AGENT_METRICS))
        self.store.set("cutlayer_broker_connected", connected)
        self.store.set("cutlayer_agents", agents)
        self.store.set("cutlayer_run_phase", 1, phase)
        self.snapshots = Snapshots()
        self.snapshots.add(Snapshot.of(0.0, {"w0": self.store}))

    def answers(self) -> list[Headline]:
        self.snapshots.add(Snapshot.of(10.0, {"w0": self.store}))
        return list(headlines(self.snapshots))

    def sites(self, **seconds: float) -> Desk:
        for name, value in seconds.items():
            self.store.set("cutlayer_agent_round_trip_seconds", value, name, "0.95")
        return self

    def sent(self, messages: int, again: int) -> Desk:
        self.store.add("cutlayer_messages_total", messages, "up", "Activations", "int8+zstd")
        self.store.add("cutlayer_resends_total", again)
        return self

    def moved(self, raw: float, up: float, down: float) -> Desk:
        self.store.set("cutlayer_run_bytes", raw, "up", "raw")
        self.store.set("cutlayer_run_bytes", up, "up", "wire")
        self.store.set("cutlayer_run_bytes", down, "down", "wire")
        return self


def test_the_questions_are_those_of_the_overview() -> None:
    text = OVERVIEW.description.lower().replace(",", "").replace(" and ", " ")
    for headline in Desk().answers():
        assert headline.question.lower().removesuffix("?") in text


def test_headlines_read_what_the_overview_shows_and_who_is_there() -> None:
    shown = {name for panel in OVERVIEW.panels for name in panel.metrics}
    others = {"cutlayer_run_phase", "cutlayer_broker_connected", "cutlayer_agent_silence_seconds"}
    assert shown | others >= HEADLINE_METRICS


def test_nothing_is_claimed_before_anything_is_known() -> None:
    assert [headline.answer for headline in headlines(Snapshots())] == ["No broker", *["Not known yet"] * 3]


# Is the run well? -------------------------------------------------------------------------------------------------


def test_healthy_run_is_well() -> None:
    health = Desk().sent(1000, 0).answers()[0]
    assert (health.answer, health.meaning) == ("Yes: 4 sites training", "good")


def test_one_site_is_no_plural() -> None:
    assert Desk(agents=1).answers()[0].answer == "Yes: 1 site training"


@pytest.mark.parametrize(
    ("again", "answer", "meaning"),
    [
        (9, "Yes: 4 sites training", "good"),
        (20, "4 sites training", "warn"),
        (60, "Much is sent again", "bad"),
    ],
)
def test_messages_sent_again_are_told_by_their_share(again: int, answer: str, meaning: str) -> None:
    health = Desk().sent(1000, again).answers()[0]
    assert (health.answer, health.meaning) == (answer, meaning)


@pytest.mark.parametrize(
    ("rejects", "answer", "meaning"),
    [(3, "Yes: 4 sites training", "good"), (20, "Messages are rejected", "warn")],
)
def test_rejects_are_told_by_the_minute_with_their_reason(rejects: int, answer: str, meaning: str) -> None:
    desk = Desk().sent(1000, 0)
    desk.store.add("cutlayer_rejects_total", 1, "worker", "lease")
    desk.store.add("cutlayer_rejects_total", rejects - 1, "agent", "version")
    health = desk.answers()[0]
    assert (health.answer, health.meaning) == (answer, meaning)
    assert health.detail == f"{rejects * 6} a minute are not taken (most: another release's)."


@pytest.mark.parametrize(
    ("desk", "answer", "meaning"),
    [
        (Desk(connected=False), "No broker", "bad"),
        (Desk(agents=0), "Waiting for sites", "warn"),
        (Desk("waiting", 0), "Waiting for sites", "warn"),
        (Desk("waiting", 2), "Waiting to start", "neutral"),
        (Desk("ended", 0, connected=False), "It has ended", "neutral"),
        (Desk("evaluating"), "Yes: 4 sites evaluating", "good"),
    ],
)
def test_other_states_have_their_words(desk: Desk, answer: str, meaning: str) -> None:
    health = desk.answers()[0]
    assert (health.answer, health.meaning) == (answer, meaning)


# Which site is slow? ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sites", "answer"),
    [
        ({"a": 0.2, "b": 0.25, "c": 0.9}, "c"),
        ({"a": 0.2, "b": 0.25, "c": 0.3}, "None stands out"),
        ({"a": 0.2, "b": 0.5}, "b"),
        ({"a": 0.2, "b": 0.25, "c": 0.9, "d": 1.9}, "d and 1 more"),
        ({"a": 0.2}, "One site only"),
        # Twice as slow, and still faster than anybody notices.
        ({"a": 0.005, "b": 0.006, "c": 0.03}, "None stands out"),
        ({}, "Not known yet"),
    ],
)
def test_site_is_slow_beside_the_others(sites: dict[str, float], answer: str) -> None:
    assert Desk().sites(**sites).answers()[1].answer == answer


def test_both_figures_are_given() -> None:
    detail = Desk().sites(a=0.2, b=0.3, c=1.5).answers()[1].detail
    assert detail == "1.50 s for a round trip (95 %); the sites' median is 300 ms."


def test_site_that_has_left_is_not_slow() -> None:
    desk = Desk().sites(a=0.2, b=0.25, c=9.0)
    desk.store.set("cutlayer_agent_silence_seconds", 120.0, "c")
    assert desk.answers()[1].answer == "None stands out"


# Which direction costs most? --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("up", "down", "answer", "meaning"),
    [
        (97, 3, "Up: 97 % of the bytes", "up"),
        (20, 80, "Down: 80 % of the bytes", "down"),
        (52, 48, "Both alike", "neutral"),
        (0, 0, "Not known yet", "neutral"),
    ],
)
def test_costlier_direction_is_named(up: float, down: float, answer: str, meaning: str) -> None:
    headline = Desk().moved(0, up * MB, down * MB).answers()[2]
    assert (headline.answer, headline.meaning) == (answer, meaning)


# What does the codec save? ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "wire", "answer", "meaning"),
    [
        (100, 25, "75 % of the bytes", "good"),
        (100, 101, "Nothing", "bad"),
        (0, 1, "Not known yet", "neutral"),
    ],
)
def test_savings_are_what_did_not_cross_the_wire(raw: float, wire: float, answer: str, meaning: str) -> None:
    headline = Desk().moved(raw * MB, wire * MB, 0).answers()[3]
    assert (headline.answer, headline.meaning) == (answer, meaning)
