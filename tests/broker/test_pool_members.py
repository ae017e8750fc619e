"""What a worker knows of the other workers of its pool."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cutlayer.broker.messages import RunPhase, WindowState, WorkerState
from cutlayer.broker.pool_members import MAX_MEMBERS, OthersInWindow, PoolMembers

RUN, OTHER_RUN = bytes(32), bytes([1]) * 32


def state(worker: str = "w1", incarnation: int = 1, **changes: Any) -> WorkerState:
    online = WorkerState(
        online=True,
        worker=worker,
        incarnation=incarnation,
        manifest_digest=RUN,
        phase=RunPhase.TRAINING,
        agents=1,
        version=0,
        reason="",
        is_draining=False,
        pool_generation=1,
    )
    return replace(online, **changes)


def window(
    worker: str = "w1",
    number: int = 3,
    num_samples: int = 4,
    *agents: str,
    incarnation: int = 1,
    closes: bool = False,
) -> WindowState:
    return WindowState(worker, incarnation, number, num_samples, agents, closes)


def members() -> PoolMembers:
    return PoolMembers("w0", RUN)


# Who serves --------------------------------------------------------------------------------------------------


def test_nobody_is_known_at_first() -> None:
    known = members()
    assert known.num_serving == known.num_online == 0
    assert known.in_window(0) == OthersInWindow()
    assert known.furthest_phase() == (RunPhase.WAITING, "")


def test_other_workers_of_the_run_are_counted_once_each() -> None:
    known = members()
    for worker in ("w1", "w2", "w1"):
        known.heard_state(state(worker))
    assert known.num_serving == known.num_online == 2


def test_what_a_worker_says_itself_is_not_about_another() -> None:
    known = members()
    known.heard_state(state("w0", phase=RunPhase.ENDED))
    known.heard_window(window("w0", closes=True))
    assert known.num_online == 0
    assert known.in_window(3) == OthersInWindow()


def test_a_worker_that_is_gone_serves_no_more_and_holds_nothing() -> None:
    known = members()
    known.heard_state(state())
    known.heard_window(window(closes=True))
    known.heard_state(state(online=False))
    assert known.num_serving == known.num_online == 0
    assert known.in_window(3) == OthersInWindow()


def test_the_late_will_of_an_earlier_process_says_nothing_about_this_one() -> None:
    known = members()
    known.heard_state(state(incarnation=2))
    known.heard_window(window(incarnation=2))
    known.heard_state(state(incarnation=1, online=False))
    assert known.num_serving == 1
    assert known.in_window(3).num_samples == 4


def test_a_new_process_holds_nothing_of_what_the_one_before_held() -> None:
    known = members()
    known.heard_state(state())
    known.heard_window(window())
    known.heard_state(state(incarnation=2))
    known.heard_window(window(num_samples=99))
    assert known.in_window(3) == OthersInWindow(num_workers=1)


def test_a_worker_of_another_run_is_online_but_does_not_serve_this_one() -> None:
    known = members()
    known.heard_state(state(manifest_digest=OTHER_RUN, phase=RunPhase.ENDED, reason="it is over"))
    assert (known.num_serving, known.num_online) == (0, 1)
    assert known.furthest_phase() == (RunPhase.WAITING, "")


def test_whoever_takes_over_a_run_knows_who_serves_it() -> None:
    """Retained states have come before the run was taken over, and do not come again."""
    known = members()
    known.heard_state(state(manifest_digest=OTHER_RUN))
    known.heard_state(state("w2"))
    known.manifest_digest = OTHER_RUN
    assert known.num_serving == 1
    assert known.furthest_phase() == (RunPhase.TRAINING, "")


def test_the_furthest_phase_comes_with_its_reason_also_from_one_that_has_left() -> None:
    known = members()
    known.heard_state(state())
    known.heard_state(state("w2"))
    known.heard_state(state("w2", phase=RunPhase.ENDED, reason="all agents have done their epochs", online=False))
    known.heard_state(state("w3", phase=RunPhase.EVALUATING))
    assert known.furthest_phase() == (RunPhase.ENDED, "all agents have done their epochs")


def test_names_that_anybody_may_make_up_take_bounded_memory_and_shut_nobody_out() -> None:
    known = members()
    known.heard_state(state("serves"))
    for index in range(2 * MAX_MEMBERS):
        known.heard_window(window(f"w{index + 1}", num_samples=1))
    assert known.in_window(3).num_samples == MAX_MEMBERS - 1
    known.heard_window(window("serves", num_samples=1))
    assert known.num_serving == 1
    assert known.in_window(3).num_samples == MAX_MEMBERS


def test_workers_that_are_online_are_not_forgotten_for_a_new_one() -> None:
    known = members()
    for index in range(MAX_MEMBERS + 1):
        known.heard_state(state(f"w{index + 1}"))
    assert known.num_serving == MAX_MEMBERS
    known.heard_state(state("w1", online=False))
    known.heard_state(state("late"))
    assert known.num_serving == MAX_MEMBERS


# What they hold ----------------------------------------------------------------------------------------------


def test_what_others_hold_of_a_window_is_added_up() -> None:
    known = members()
    known.heard_window(window("w1", 3, 4, "a"))
    known.heard_window(window("w2", 3, 8, "b", "c"))
    known.heard_window(window("w3", 2, 100, "d"))
    assert known.in_window(3) == OthersInWindow(12, frozenset({"a", "b", "c"}))


def test_the_newest_word_of_a_worker_counts() -> None:
    known = members()
    known.heard_window(window("w1", 3, 4, "a", closes=True))
    known.heard_window(window("w1", 3, 8, "a", "b"))
    assert known.in_window(3) == OthersInWindow(8, frozenset({"a", "b"}))


@pytest.mark.parametrize("number", [0, 3])
def test_a_call_to_close_is_heard_whatever_window_its_worker_has(number: int) -> None:
    """A worker that joins has window 0, whatever the pool's is."""
    known = members()
    known.heard_window(window(number=number, closes=True))
    assert known.in_window(3).ask_to_close


def test_a_worker_with_a_later_window_calls_for_a_round() -> None:
    known = members()
    known.heard_window(window(number=4))
    assert known.in_window(3) == OthersInWindow(ask_to_close=True)
    assert not known.in_window(4).ask_to_close


def test_the_end_of_a_round_ends_what_was_said_about_its_window() -> None:
    known = members()
    known.heard_window(window("w1", closes=True))
    known.heard_window(window("w2", 2, closes=True))
    known.round_ended(7, 3)
    assert known.generation == 7
    assert known.in_window(3) == OthersInWindow()


def test_what_was_said_about_the_next_window_outlives_the_end_of_the_round() -> None:
    """Whoever has heard of the end first may already hold a part of the next window."""
    known = members()
    known.heard_window(window("w1", 4, 8, "a", closes=True))
    known.round_ended(1, 3)
    assert known.in_window(4) == OthersInWindow(8, frozenset({"a"}), ask_to_close=True)
