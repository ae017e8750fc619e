"""What a worker has in hand: what is forgotten, what is committed, and whose graphs are given up."""

from __future__ import annotations

import pytest

from cutlayer.broker.messages import Mode
from cutlayer.broker.work import Forward, Release
from support.scheduler_bench import Bench, bench

# Coming and going --------------------------------------------------------------------------------------------


def test_an_agents_microbatches_are_counted() -> None:
    b = bench(samples=4)
    b.arrive("a", 0)
    b.arrive("a", 1)
    b.arrive("b", 0)
    assert b.in_hand.num_of("a") == 2
    assert b.in_hand.num_of("c") == 0


def test_what_was_forgotten_during_its_forward_pass_is_not_wanted_any_more() -> None:
    b = bench()
    gone, kept = b.arrive("a"), b.arrive("b")
    work = b.next()
    assert isinstance(work, Forward)
    b.in_hand.abandon("a")
    wanted = b.in_hand.forwarded(work.group, (gone, kept), 0, b.now)
    assert [exchange.key for exchange in wanted] == [kept]


def test_a_group_that_nobody_wants_is_released_once() -> None:
    b = bench()
    b.arrive("a")
    b.forward()
    b.in_hand.abandon("a")
    assert b.next() == Release(0)
    assert b.next() is None


def test_a_group_that_loses_the_agent_that_it_waits_for_goes_backward_without() -> None:
    b = bench(samples=4)
    here, gone = b.arrive("a"), b.arrive("b")
    b.forward()
    b.gradients(here)
    b.in_hand.abandon("b")
    assert gone not in b.in_hand.exchanges
    assert b.backward() == (here,)
    assert b.commit() == [here]


def test_what_has_sent_its_gradients_is_kept_when_its_agent_is_gone() -> None:
    b = bench(samples=4)
    key = b.arrive("a")
    b.forward()
    b.gradients(key)
    b.in_hand.abandon("a")
    assert b.backward() == (key,)
    b.in_hand.abandon("a")
    assert b.commit() == [key]


def test_gradients_that_cannot_be_decoded_leave_their_group() -> None:
    b = bench(credits=1)
    bad, good = b.arrive("a"), b.arrive("b")
    b.forward()
    b.gradients(bad, good)
    b.in_hand.discard(bad)
    assert b.backward() == (good,)
    b.in_hand.discard(good)  # it is in the window by now
    del b.leases["a"]
    assert b.commit() == [good]


# The window --------------------------------------------------------------------------------------------------


def test_a_commit_counts_the_samples_of_all_workers() -> None:
    b = bench(samples=4)
    key = b.arrive("a")
    b.forward()
    b.through(key)
    assert [exchange.key for exchange in b.in_hand.committed(7, 40)] == [key]
    assert (b.in_hand.window, b.in_hand.version, b.in_hand.committed_samples) == (1, 7, 40)
    assert b.scheduler.progress(10, 100) == 0.5


def test_a_window_that_is_emptied_is_open_as_if_nothing_had_come() -> None:
    b = bench(samples=99)
    key = b.arrive("a")
    b.forward()
    b.through(key)
    assert [exchange.key for exchange in b.in_hand.empty_window()] == [key]
    assert (b.in_hand.in_window, b.in_hand.window_samples) == ((), 0)
    assert b.scheduler.deadlines() == []
    assert b.in_hand.window == 0
    assert b.arrive("a") == key, "it may come again"
    assert b.forward() == (key,)


def test_what_another_worker_has_committed_is_forgotten_in_whatever_state_it_is() -> None:
    b = bench(samples=99, credits=9)
    forwarded, kept = b.arrive("a", 0), b.arrive("b", 0)
    b.forward()
    ready, waiting = b.arrive("a", 1), b.arrive("b", 1)
    b.forward()
    b.gradients(ready)
    arrived, evaluation = b.arrive("a", 2), b.arrive("a", 1, Mode.EVAL)
    for step in range(3):
        b.ledger.add("a", step)
    done = b.in_hand.take_committed(b.ledger)
    assert [exchange.key for exchange in done] == [forwarded, ready, arrived]
    assert set(b.in_hand.exchanges) == {kept, waiting, evaluation}
    assert b.forward() == (evaluation,)
    b.through(kept, waiting)
    assert set(b.in_hand.in_window) == {kept, waiting}


def test_what_is_in_the_window_is_not_taken_for_committed_elsewhere() -> None:
    b = bench(samples=99)
    key = b.arrive("a")
    b.forward()
    b.through(key)
    b.ledger.add("a", 0)
    assert b.in_hand.take_committed(b.ledger) == []
    assert b.in_hand.in_window == (key,)


def test_a_group_of_which_everything_was_committed_elsewhere_is_released() -> None:
    b = bench()
    b.arrive("a")
    b.forward()
    b.ledger.add("a", 0)
    b.in_hand.take_committed(b.ledger)
    assert b.next() == Release(0)
    assert b.next() is None


def test_other_weights_void_all_graphs_and_the_window_and_spare_what_has_not_gone_forward() -> None:
    b = bench(samples=99, credits=9)
    in_window = b.arrive("a", 0)
    b.forward()
    b.through(in_window)
    waiting = b.arrive("a", 1)
    b.forward()
    gone = b.arrive("b", 0)
    b.forward()
    b.in_hand.discard(gone)
    arrived = b.arrive("a", 2)
    lost = b.in_hand.start_over(5, 6, 70)
    assert [exchange.key for exchange in lost] == [in_window, waiting]
    assert (b.in_hand.window, b.in_hand.version, b.in_hand.committed_samples) == (5, 6, 70)
    assert (b.in_hand.in_window, b.in_hand.window_samples) == ((), 0)
    assert b.scheduler.deadlines() == []
    assert b.forward() == (arrived,), "no graph is released that the engine has dropped already"
    assert b.next() is None


# Staleness ---------------------------------------------------------------------------------------------------


def commit_one(b: Bench, step: int) -> None:
    """Commit a step of an agent of its own."""
    key = b.arrive("other", step)
    assert b.forward() == (key,)
    b.through(key)
    assert key in b.commit()


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_a_group_is_given_up_when_its_weights_are_older_than_allowed(max_staleness: int) -> None:
    b = bench(samples=4, max_staleness=max_staleness)
    slow = b.arrive("a")
    b.forward()
    for step in range(max_staleness):
        commit_one(b, step)
        b.in_hand.give_up_stale(b.now)
        assert b.in_hand.exchanges[slow].group == 0
    commit_one(b, max_staleness)
    b.in_hand.give_up_stale(b.now)
    assert b.in_hand.exchanges[slow].group is None
    assert b.next() == Release(0)
    assert b.next() is None, "it goes forward again when its gradients come, and no earlier"
    b.in_hand.give_up_stale(b.now)
    assert b.next() is None


def test_a_microbatch_whose_graph_was_given_up_goes_forward_again_when_its_gradients_come() -> None:
    b = bench(samples=4, max_staleness=0)
    slow = b.arrive("a")
    b.forward()
    commit_one(b, 0)
    b.in_hand.give_up_stale(b.now)
    assert b.next() == Release(0)
    b.late_gradients(slow)
    assert b.forward() == (slow,)
    b.gradients(slow)
    assert b.backward() == (slow,)
    assert b.commit() == [slow]


def test_the_age_of_a_group_counts_from_the_weights_that_the_engine_used() -> None:
    b = bench(samples=4, max_staleness=0)
    b.arrive("a")
    work = b.next()
    assert isinstance(work, Forward)
    b.in_hand.forwarded(work.group, tuple(key for key, _ in work.microbatches), 1, b.now)
    commit_one(b, 0)
    b.in_hand.give_up_stale(b.now)
    assert b.next() is None, "nothing is released"


def test_what_of_a_stale_group_is_committed_already_stays_committed() -> None:
    b = bench(samples=8, max_staleness=0)
    quick, slow = b.arrive("a"), b.arrive("b")
    b.forward()
    b.gradients(quick)
    b.now = 2.0
    assert b.backward() == (quick,)
    b.now = 4.0
    assert b.commit() == [quick]
    b.in_hand.give_up_stale(b.now)
    assert list(b.in_hand.exchanges) == [slow]
    assert b.in_hand.exchanges[slow].group is None


def test_gradients_that_waited_for_others_of_a_stale_group_go_forward_again_at_once() -> None:
    b = bench(samples=8, max_staleness=0, deadline_s=100.0)
    early, waiting = b.arrive("a"), b.arrive("b")
    b.forward()
    other = b.arrive("c", num_samples=8)
    b.forward()
    b.gradients(early)
    b.gradients(other)
    assert b.backward() == (other,)
    assert b.commit() == [other]
    b.in_hand.give_up_stale(b.now)
    assert b.next() == Release(0)
    assert b.forward() == (early,)
    assert b.in_hand.exchanges[waiting].group is None
    assert b.next() is None
