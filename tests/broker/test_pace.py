"""Who is slow, by the fastest of the others."""

from __future__ import annotations

import pytest

from cutlayer.broker.pace import SLOW_RATIO, Pace


def paced(**times_s: float) -> Pace:
    pace = Pace(0.05)
    for agent, seconds in times_s.items():
        pace.took(agent, seconds)
    return pace


def test_nobody_is_slow_before_anybody_has_answered() -> None:
    assert paced().slow_after_s == float("inf")
    assert not paced().is_slow("a")


def test_agent_alone_is_not_slow() -> None:
    assert not paced(a=100.0).is_slow("a")


def test_agent_is_slow_that_takes_several_times_the_fast_ones_time() -> None:
    pace = paced(a=1.0, b=1.0, c=SLOW_RATIO + 0.1, d=SLOW_RATIO)
    assert [agent for agent in "abcd" if pace.is_slow(agent)] == ["c"]


def test_small_differences_are_not_slow() -> None:
    assert not paced(a=0.0, b=0.05).is_slow("b")
    assert paced(a=0.0, b=0.06).is_slow("b")


def test_several_slow_agents_are_slow_beside_one_fast() -> None:
    pace = paced(a=0.01, b=5.0, c=5.0, d=5.0)
    assert [agent for agent in "abcd" if pace.is_slow(agent)] == ["b", "c", "d"]


def test_one_answer_at_once_among_many_is_no_measure() -> None:
    pace = paced(a=0.0, **{f"b{index}": 1.0 for index in range(9)})
    assert not pace.is_slow("b0")


def test_agent_that_answers_fast_again_is_slow_no_more() -> None:
    pace = paced(a=0.01, b=0.8)
    for _ in range(5):
        pace.took("b", 0.01)
    assert not pace.is_slow("b")


def test_wait_that_has_no_end_yet_counts() -> None:
    pace = paced(a=0.01)
    pace.takes_at_least("b", 0.5)
    assert pace.is_slow("b")
    pace.takes_at_least("b", 0.02)
    assert pace.is_slow("b"), "a shorter wait says nothing new"


def test_agent_that_is_forgotten_is_no_measure_any_more() -> None:
    pace = paced(a=0.01, b=5.0)
    pace.forget("a")
    pace.forget("nobody")
    assert not pace.is_slow("b")
    assert pace.slow_after_s == pytest.approx(SLOW_RATIO * 5.0)
