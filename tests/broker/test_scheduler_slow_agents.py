"""Whom nobody waits for: agents that take much longer for their gradients than the fast ones."""

from __future__ import annotations

from cutlayer.broker.work import Backward, Release
from support.scheduler_bench import SLOW_AFTER_S, Bench, bench


def with_slow(*, mode: str = "asynchronous", samples: int = 64) -> Bench:
    """Return a bench that knows `fast` and `slow`: their first microbatches are committed."""
    b = bench(mode=mode, samples=samples)
    keys = [b.arrive("fast"), b.arrive("slow")]
    b.forward()
    b.gradients(keys[0])
    b.now = 0.9
    b.gradients(keys[1])
    while isinstance(b.next(), Backward):
        b.backward()
    b.now = 2.0
    b.commit()
    return b


def test_gradients_wait_no_longer_when_all_that_they_wait_for_are_slow() -> None:
    b = bench()
    fast, slow = b.arrive("fast"), b.arrive("slow")
    assert b.forward() == (fast, slow)
    b.gradients(fast)
    assert b.next() is None
    assert b.scheduler.deadlines() == [SLOW_AFTER_S]
    b.now = SLOW_AFTER_S
    assert b.backward() == (fast,)


def test_slow_agent_is_measured_by_the_fast_ones() -> None:
    b = bench()
    keys = [b.arrive("fast"), b.arrive("slow")]
    b.forward()
    b.now = 0.2
    b.gradients(keys[0])
    b.now = 0.7
    assert b.next() is None, "the others may take four times as long"
    b.now = 0.8
    assert b.backward() == (keys[0],)


def test_slow_agents_microbatches_go_forward_without_those_of_others() -> None:
    b = with_slow()
    fast, slow, later = b.arrive("fast", 1), b.arrive("slow", 1), b.arrive("fast", 2)
    assert b.forward() == (fast, later)
    assert b.forward() == (slow,)


def test_agents_of_one_pace_go_forward_together_however_slow_they_all_are() -> None:
    b = bench(samples=8)
    keys = [b.arrive("a"), b.arrive("b")]
    b.forward()
    b.now = 30.0
    b.through(*keys)
    b.commit()
    keys = [b.arrive("a", 1), b.arrive("b", 1)]
    assert b.forward() == tuple(keys)


def test_window_does_not_wait_for_a_slow_agent() -> None:
    b = with_slow()
    first, second = b.arrive("fast", 1), b.arrive("fast", 2)
    b.forward()
    b.through(first, second)
    assert b.commit() == [first, second]


def test_slow_agents_wait_for_each_other_when_only_they_are_left() -> None:
    b = with_slow()
    b.leases["fast"].is_done = True
    b.lease("other")
    b.in_hand.pace.takes_at_least("other", 0.9)
    keys = [b.arrive("slow", 1), b.arrive("slow", 2)]
    assert (b.forward(), b.next()) == (tuple(keys), None)
    b.gradients(*keys)
    assert set(b.backward()) == set(keys)
    assert b.next() is None


def test_agent_that_has_recovered_is_one_of_the_others_again() -> None:
    b = with_slow()
    for step in range(1, 8):
        key = b.arrive("slow", step)
        b.forward()
        b.through(key)
        b.now += 1.0
        b.commit()
    fast, recovered = b.arrive("fast", 1), b.arrive("slow", 8)
    assert b.forward() == (fast, recovered)


def test_agent_whose_graph_has_grown_stale_is_known_to_be_slow() -> None:
    b = bench(samples=4, max_staleness=1)
    slow = b.arrive("slow")
    b.forward()
    for step in range(2):
        key = b.arrive("fast", step)
        b.forward()
        b.through(key)
        b.now += 0.5
        b.commit()
    b.in_hand.give_up_stale(b.now)
    b.late_gradients(slow)
    fast = b.arrive("fast", 2)
    assert isinstance(b.next(), Release)
    assert b.forward() == (slow,)
    assert b.forward() == (fast,)


def test_synchronous_windows_wait_for_everybody() -> None:
    b = bench(mode="synchronous")
    fast, slow = b.arrive("fast"), b.arrive("slow")
    b.forward()
    b.gradients(fast)
    b.now = 1_000.0
    assert b.next() is None
    b.gradients(slow)
    assert set(b.backward()) == {fast, slow}


def test_agent_that_has_gone_is_forgotten() -> None:
    b = with_slow()
    b.in_hand.abandon("slow")
    fast, slow = b.arrive("fast", 1), b.arrive("slow", 1)
    assert b.forward() == (fast, slow)
