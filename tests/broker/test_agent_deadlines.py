"""How long an agent waits."""

from __future__ import annotations

import pytest

from cutlayer.broker.agent_deadlines import Deadlines, Patience

DEADLINES = Deadlines(step_s=5.0, longest_s=60.0)


def test_patience_doubles_with_each_repetition_up_to_the_longest_time() -> None:
    patience = Patience(DEADLINES)
    assert [patience.wait_s(repeats) for repeats in range(5)] == [5.0, 10.0, 20.0, 40.0, 60.0]
    assert patience.wait_s(10_000) == 60.0


def test_the_longest_time_is_no_shorter_than_the_first() -> None:
    assert Patience(Deadlines(step_s=90.0, longest_s=60.0)).wait_s(0) == 90.0


def test_patience_is_four_round_trips_where_that_is_more() -> None:
    patience = Patience(DEADLINES)
    patience.measure(1, 3.0, 1.0)
    assert patience.wait_s(0) == 12.0
    patience.measure(1, 11.0, 1.0)
    assert patience.round_trip_s == pytest.approx(4.0)
    assert patience.wait_s(0) == pytest.approx(16.0)


def test_what_was_sent_twice_measures_no_round_trip_but_what_the_worker_took() -> None:
    patience = Patience(DEADLINES)
    patience.measure(2, 0.1, 8.0)
    assert patience.round_trip_s is None
    assert patience.wait_s(0) == 12.0
    patience.measure(1, 1.0, 8.0)
    assert patience.wait_s(0) == 5.0
