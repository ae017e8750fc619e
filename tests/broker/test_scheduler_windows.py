"""When a window closes, and what synchronous windows wait for."""

from __future__ import annotations

import pytest

from cutlayer.broker.messages import Mode
from cutlayer.broker.work import Commit, Key
from support.scheduler_bench import bench

# Asynchronous ------------------------------------------------------------------------------------------------


def test_a_window_closes_at_its_number_of_samples() -> None:
    b = bench(samples=12, credits=9)
    keys = [b.arrive("a", step) for step in range(3)]
    b.forward()
    b.through(*keys)
    work = b.next()
    assert work == Commit(0, 12, 3, None)
    assert b.commit() == keys
    assert b.in_hand.window == b.in_hand.version == 1
    assert b.in_hand.committed_samples == 12


def test_a_window_closes_before_a_group_that_would_take_it_further_from_its_size() -> None:
    b = bench(samples=8, credits=9)
    small = b.arrive("a", num_samples=5)
    b.forward()
    large = b.arrive("a", 1, num_samples=8)
    b.forward()
    b.gradients(large)
    b.gradients(small)
    assert b.backward() == (small,), "groups go backward in the order of their forward passes"
    assert b.commit() == [small], "5 is nearer to 8 than 13"
    assert b.backward() == (large,)
    assert b.commit() == [large]
    almost, next_one = b.arrive("a", 2, num_samples=6), b.arrive("b", 2, num_samples=4)
    b.forward()
    b.forward()
    b.through(almost, next_one)
    assert b.commit() == [almost, next_one], "10 is as near to 8 as 6"


def test_a_window_closes_at_its_deadline() -> None:
    b = bench(samples=99, credits=9)
    key = b.arrive("a")
    b.forward()
    b.now = 3.0
    b.through(key)
    assert b.next() is None
    assert b.scheduler.deadlines() == [4.0]
    b.now = 4.0
    assert b.commit() == [key]
    assert b.scheduler.deadlines() == []


def test_a_window_closes_when_every_agent_waits_for_it_with_all_its_credits() -> None:
    b = bench(samples=99, credits=2)
    first = [b.arrive("a", 0), b.arrive("a", 1)]
    b.forward()
    b.lease("b")
    b.through(*first)
    assert b.next() is None, "the other agent can still send"
    other = []
    for step in range(2):
        assert b.next() is None
        other.append(b.arrive("b", step))
        b.forward()
        b.through(other[-1])
    assert b.commit() == [*first, *other]


def test_an_agent_whose_last_steps_are_in_the_window_does_not_hold_it_open() -> None:
    b = bench(samples=99, credits=4)
    b.lease("a", total_steps=2)
    b.ledger.add("a", 0)
    key = b.arrive("a", 1)
    b.forward()
    b.through(key)
    assert b.commit() == [key]


@pytest.mark.parametrize("how", ["done", "absent", "dropped"])
def test_nobody_waits_for_an_agent_that_is_done_absent_or_gone(how: str) -> None:
    b = bench(samples=99, credits=1)
    b.lease("b")
    key = b.arrive("a")
    b.forward()
    b.through(key)
    assert b.next() is None
    if how == "done":
        b.leases["b"].is_done = True
    elif how == "absent":
        b.leases["b"].absent_since = 0.0
    else:
        del b.leases["b"]
    assert b.commit() == [key]


def test_progress_is_the_share_of_the_planned_samples_and_never_more_than_all() -> None:
    b = bench(samples=4)
    for planned, progress in ((16, 0.25), (10, 0.8), (8, 1.0), (0, 1.0), (None, None)):
        b.planned_samples = planned
        key = b.arrive("a", b.in_hand.window)
        b.forward()
        b.through(key)
        work = b.next()
        assert isinstance(work, Commit)
        assert work.progress == progress
        b.commit()


def test_what_comes_while_a_window_is_open_joins_it_or_the_next() -> None:
    b = bench(samples=8, credits=9)
    keys = [b.arrive("a", step) for step in range(3)]
    b.forward()
    b.forward()
    b.through(keys[2])
    b.gradients(*keys[:2])
    assert b.backward() == tuple(keys[:2])
    assert b.commit() == [keys[2], *keys[:2]]
    assert b.next() is None


# Synchronous -------------------------------------------------------------------------------------------------


def test_synchronous_windows_hold_one_microbatch_of_each_leased_agent() -> None:
    b = bench(mode="synchronous", samples=1)
    b.lease("a", "b", "c")
    keys = [b.arrive("a"), b.arrive("b")]
    assert b.arrive("a", 1)
    assert b.forward() == tuple(keys)
    assert b.next() is None, "the second microbatch of an agent waits for the window of its first"
    b.through(*keys)
    assert b.next() is None, "one agent is missing, and no deadline goes on without it"
    assert b.scheduler.deadlines() == []
    b.now = 1e6
    assert b.next() is None
    last = b.arrive("c")
    b.forward()
    b.through(last)
    assert b.commit() == [*keys, last]
    assert b.forward() == (Key("a", Mode.TRAIN, 1),)


def test_synchronous_backward_waits_for_the_whole_group_however_long() -> None:
    b = bench(mode="synchronous")
    keys = [b.arrive("a"), b.arrive("b")]
    b.forward()
    b.gradients(keys[0])
    b.now = 1e6
    assert b.next() is None
    b.gradients(keys[1])
    assert b.backward() == tuple(keys)


def test_an_absent_agent_is_waited_for_until_it_is_dropped() -> None:
    b = bench(mode="synchronous")
    b.lease("b")
    key = b.arrive("a")
    b.forward()
    b.through(key)
    b.leases["b"].absent_since = 0.0
    assert b.next() is None
    del b.leases["b"]
    assert b.commit() == [key]


def test_synchronous_steps_go_in_order_of_the_first_missing_one_whatever_arrives_first() -> None:
    b = bench(mode="synchronous")
    second, first = b.arrive("a", 1), b.arrive("a", 0)
    for key in (first, second):
        assert b.forward() == (key,)
        b.through(key)
        b.commit()


def test_a_step_that_overtook_the_one_before_waits_for_it() -> None:
    b = bench(mode="synchronous")
    b.arrive("a", 1)
    assert b.next() is None


def test_steps_further_on_than_the_ledger_wait_until_their_agent_takes_them_back() -> None:
    """After a resume from an older checkpoint: the agent starts again from the first step that is missing."""
    b = bench(mode="synchronous", credits=2)
    b.ledger.add("a", 0)
    b.arrive("a", 8)
    b.arrive("a", 7)
    assert b.next() is None
    b.in_hand.abandon("a")
    missing = b.arrive("a", 1)
    assert b.forward() == (missing,)
    b.through(missing)
    assert b.commit() == [missing]


def test_evaluations_need_not_wait_in_synchronous_mode() -> None:
    b = bench(mode="synchronous")
    b.arrive("a", 1)
    evaluation = b.arrive("a", mode=Mode.EVAL)
    assert b.forward() == (evaluation,)
