from __future__ import annotations

import math

import pytest

from cutlayer.dashboards.live_history import History
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.dashboards.overview_board import OVERVIEW
from cutlayer.dashboards.panels import Board, Panel, Row, Shape, Target, Unit
from cutlayer.dashboards.query import Mean, Rate, Ratio, Top, Value
from cutlayer.dashboards.snapshots import Snapshot

AGENTS = Target(Value("cutlayer_agents"), "agents")
STEPS = Target(Rate("cutlayer_steps_total"), "steps/s")
STAGES = Target(Mean("cutlayer_stage_seconds", ("stage",)), "{{stage}}")
REASONS = Target(Top(Rate("cutlayer_rejects_total", ("reason",)), 2), "{{reason}}")
HEADROOM = Target(Ratio(Value("cutlayer_agents"), Value("cutlayer_workers")), "agents a worker")


def board(*targets: Target, shape: Shape = Shape.LINES) -> Board:
    return Board("test", "Test", "", (Row("", (Panel("Panel", "", Unit.PLAIN, shape, targets),)),))


class Desk:
    """A store, and a history of it that is looked at once a second."""

    def __init__(self, *targets: Target, shape: Shape = Shape.LINES, num_kept: int = 5) -> None:
        self.store = MetricStore()
        self.history = History(board(*targets, shape=shape), num_kept, 15.0)
        self.now = 0.0

    def look(self) -> None:
        self.history.add(1000.0 + self.now, Snapshot.of(self.now, {"w0": self.store}))
        self.now += 1.0

    def values(self, since: int = 0) -> dict[tuple[str, ...], list[float | None]]:
        return {(f"{series.key[1]}", *series.group): series.values for series in self.history.series(since)}


def test_each_time_has_a_value() -> None:
    desk = Desk(AGENTS)
    for agents in (0, 1, 3):
        desk.store.set("cutlayer_agents", agents)
        desk.look()
    assert desk.history.times(0) == [1000.0, 1001.0, 1002.0]
    assert desk.values() == {("0",): [0.0, 1.0, 3.0]}


def test_only_the_last_times_are_kept() -> None:
    desk = Desk(AGENTS, num_kept=3)
    for agents in range(7):
        desk.store.set("cutlayer_agents", agents)
        desk.look()
    assert desk.history.num_taken == 7
    assert desk.history.times(0) == [1004.0, 1005.0, 1006.0]
    assert desk.values() == {("0",): [4.0, 5.0, 6.0]}


@pytest.mark.parametrize(("since", "expected"), [(0, 3), (3, 3), (4, 3), (5, 2), (6, 1), (7, 0)])
def test_who_has_been_here_before_gets_what_is_new(since: int, expected: int) -> None:
    desk = Desk(AGENTS, num_kept=3)
    for _ in range(7):
        desk.look()
    assert len(desk.history.times(since)) == expected
    assert [len(values) for values in desk.values(since).values()] == [expected]


def test_rate_needs_two_looks() -> None:
    desk = Desk(STEPS)
    desk.look()
    for _ in range(2):
        desk.store.add("cutlayer_steps_total", 4)
        desk.look()
    assert desk.values() == {("0",): [None, 4.0, 4.0]}


def test_group_that_comes_later_has_gaps_before() -> None:
    desk = Desk(STAGES)
    desk.look()
    desk.look()
    desk.store.observe("cutlayer_stage_seconds", 0.5, "forward")
    desk.look()
    assert desk.values() == {("0", "forward"): [None, None, 0.5]}


def test_group_that_goes_has_gaps_and_is_forgotten_when_nothing_else_is_left() -> None:
    desk = Desk(STAGES, num_kept=2)
    desk.look()
    desk.store.observe("cutlayer_stage_seconds", 0.5, "forward")
    desk.look()
    desk.now += 100.0
    desk.look()
    desk.look()
    assert not desk.values()


def test_stages_stand_in_the_order_of_a_step_whichever_came_first() -> None:
    desk = Desk(STAGES)
    desk.look()
    for stage in ("commit", "backward", "tokenize", "forward", "network"):
        desk.store.observe("cutlayer_stage_seconds", 0.5, stage)
        desk.look()
    assert [group[1] for group in desk.values()] == ["tokenize", "network", "forward", "backward", "commit"]


def test_bars_have_the_present_only_the_longest_first() -> None:
    desk = Desk(REASONS, shape=Shape.BARS)
    desk.look()
    for reason, times in (("busy", 1), ("lease", 5), ("codec", 3)):
        desk.store.add("cutlayer_rejects_total", times, "worker", reason)
    desk.look()
    assert desk.values() == {("0", "lease"): [5.0], ("0", "codec"): [3.0]}
    assert list(desk.values()) == [("0", "lease"), ("0", "codec")]


def test_quotient_of_nothing_is_a_gap() -> None:
    desk = Desk(AGENTS, HEADROOM)
    desk.look()
    desk.store.set("cutlayer_workers", 2)
    desk.store.set("cutlayer_agents", 3)
    desk.look()
    assert desk.values()["1",] == [None, 1.5]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_a_gap(value: float) -> None:
    desk = Desk(AGENTS)
    desk.look()
    desk.store.set("cutlayer_agents", value)
    desk.look()
    assert desk.values() == {("0",): [0.0, None]}


def test_digits_that_nobody_can_see_are_left_out() -> None:
    desk = Desk(AGENTS)
    desk.store.set("cutlayer_agents", 12345678.9)
    desk.look()
    assert desk.values() == {("0",): [12346000.0]}


def test_one_question_is_answered_once_wherever_it_stands() -> None:
    history = History(OVERVIEW, 2, 15.0)
    num_targets = sum(len(panel.targets) for panel in OVERVIEW.panels)
    # The wire's two directions are a number each, and a line each.
    assert len(history._answers) < num_targets
