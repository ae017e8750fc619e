"""What a worker of a pool computes next: windows that are filled elsewhere, and rounds."""

from __future__ import annotations

from cutlayer.broker.messages import Mode
from cutlayer.broker.pool_members import OthersInWindow
from cutlayer.broker.work import Commit, Key
from support.scheduler_bench import bench


def others(num_samples: int = 0, *agents: str, ask_to_close: bool = False) -> OthersInWindow:
    return OthersInWindow(num_samples, frozenset(agents), ask_to_close)


def test_what_other_workers_hold_counts_towards_a_windows_size() -> None:
    b = bench(samples=12, credits=9)
    key = b.arrive("a")
    b.forward()
    b.through(key)
    b.others = others(4)
    assert b.next() is None
    b.others = others(8)
    assert b.next() == Commit(0, 4, 1, None, is_due=True), "its own samples: the round adds the others'"


def test_a_window_that_others_have_filled_is_due_for_a_worker_that_holds_nothing() -> None:
    b = bench(samples=8)
    b.others = others(8)
    assert b.next() == Commit(0, 0, 0, None, is_due=True)


def test_deadline_and_credits_are_about_the_own_part_of_a_window() -> None:
    b = bench(samples=99, credits=1)
    b.others = others(4)
    b.lease("a")
    b.now = 1e6
    assert b.next() is None, "the others see to theirs"
    key = b.arrive("a")
    b.forward()
    b.through(key)
    assert b.commit() == [key], "all agents here wait"


def test_a_synchronous_window_has_an_agents_microbatch_wherever_in_the_pool_it_is() -> None:
    b = bench(mode="synchronous")
    key = b.arrive("a")
    b.lease("b")
    b.forward()
    b.through(key)
    assert b.next() is None
    b.others = others(4, "b")
    assert b.commit() == [key]


def test_a_synchronous_step_that_another_workers_window_has_waits_for_its_commit() -> None:
    b = bench(mode="synchronous")
    b.lease("b")
    here, _ = b.arrive("a"), b.arrive("b")
    b.others = others(4, "b")
    assert b.forward() == (here,)
    b.others = others()
    assert b.forward() == (Key("b", Mode.TRAIN, 0),), "it was rejected there"


def test_whoever_is_asked_starts_a_round_and_says_whether_it_finds_the_window_due() -> None:
    b = bench()
    b.others = others(ask_to_close=True)
    assert b.next() == Commit(0, 0, 0, None, is_due=False)
    key = b.arrive("a")
    b.others = others()
    b.forward()
    b.gradients(key)
    b.others = others(ask_to_close=True)
    assert b.next() == Commit(0, 0, 0, None, is_due=False), "the others wait, a backward pass can wait too"


def test_right_after_a_round_that_failed_no_window_closes_but_work_goes_on() -> None:
    b = bench(samples=4)
    key = b.arrive("a")
    b.may_commit = False
    b.forward()
    b.through(key)
    assert b.next() is None
    late = b.arrive("a", 1)
    assert b.forward() == (late,)
    b.may_commit = True
    assert b.commit() == [key]


def test_during_a_round_microbatches_go_forward_and_the_window_stays_as_it_is() -> None:
    b = bench(samples=4, credits=9)
    key, ready = b.arrive("a"), b.arrive("b")
    b.forward()
    b.forward()
    b.through(key)
    b.gradients(ready)
    b.scheduler.is_in_round = True
    late = b.arrive("c")
    assert b.forward() == (late,)
    assert b.next() is None, "neither the backward pass nor the commit"
    b.in_hand.abandon("a")
    b.in_hand.discard(key)
    assert b.in_hand.in_window == (key,)
    assert b.in_hand.window_samples == 4
    b.scheduler.is_in_round = False
    assert b.commit() == [key]
    assert b.backward() == (ready,)
