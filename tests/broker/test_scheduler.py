"""What a worker computes next: which microbatches go together, and when their backward pass runs."""

from __future__ import annotations

import pytest

from cutlayer.broker.messages import Mode
from cutlayer.broker.pool_members import OthersInWindow
from cutlayer.broker.work import Backward
from support.conversation import zeros
from support.scheduler_bench import SLOW_AFTER_S, bench

# Forward -----------------------------------------------------------------------------------------------------


def test_there_is_nothing_to_do_at_first() -> None:
    assert bench().next() is None
    assert bench().scheduler.deadlines() == []


def test_what_has_arrived_goes_forward_together_in_order() -> None:
    b = bench()
    keys = [b.arrive(agent, step) for agent, step in (("b", 0), ("a", 0), ("b", 1))]
    assert list(b.forward()) == keys
    assert b.next() is None


def test_a_batch_holds_no_more_samples_than_allowed_but_always_one_microbatch() -> None:
    b = bench(max_batch_samples=9)
    a, large, c, d = b.arrive("a"), b.arrive("b", num_samples=8), b.arrive("c"), b.arrive("d", num_samples=1)
    assert b.forward() == (a, c, d), "a later one that still fits goes along"
    assert b.forward() == (large,)
    alone = b.arrive("e", num_samples=20)
    assert b.forward() == (alone,)


def test_what_a_contrasted_window_has_no_room_for_goes_forward_with_the_next_weights() -> None:
    agents = bench(samples=8, is_contrasted=True)
    keys = [agents.arrive(agent, step) for step in range(2) for agent in "ab"]
    assert agents.forward() == tuple(keys[:2])
    assert agents.next() is None, "a window's samples are under way"
    agents.through(*keys[:2])
    assert agents.commit() == keys[:2]
    assert agents.forward() == tuple(keys[2:])
    assert agents.in_hand.version == 1


def test_evaluations_go_forward_whatever_a_contrasted_window_waits_for() -> None:
    agents = bench(samples=4, is_contrasted=True)
    agents.arrive("a", 0)
    agents.forward()
    agents.arrive("a", 1)
    evaluation = agents.arrive("b", 0, Mode.EVAL)
    assert agents.forward() == (evaluation,)


def test_a_contrasted_window_leaves_no_room_to_who_does_not_answer() -> None:
    agents = bench(samples=4, is_contrasted=True)
    agents.arrive("gone", 0)
    agents.forward()
    other = agents.arrive("a", 0)
    assert agents.next() is None
    [agents.now] = agents.scheduler.deadlines()
    assert agents.now == 1.0, "the deadline of a window"
    assert agents.forward() == (other,)
    assert agents.scheduler.deadlines() == []


def test_a_contrasted_window_is_filled_by_whole_microbatches_past_its_size_at_the_most() -> None:
    agents = bench(samples=6, max_batch_samples=4, is_contrasted=True)
    keys = [agents.arrive(agent) for agent in "abc"]
    assert [agents.forward(), agents.forward()] == [(keys[0],), (keys[1],)]
    assert agents.next() is None


def test_a_contrasted_window_has_room_for_a_microbatch_however_many_workers_share_it() -> None:
    agents = bench(samples=2, is_contrasted=True)
    agents.others = OthersInWindow(num_workers=3)
    key = agents.arrive("a", 0)
    assert agents.forward() == (key,)


def test_other_modalities_and_modes_go_apart() -> None:
    b = bench()
    a = b.arrive("a")
    sound = b.arrive("b", tokens=(("audio", zeros(4, 4, 2)),))
    both = b.arrive("c", tokens=(("image", zeros(4, 4, 2)), ("audio", zeros(4, 4, 2))))
    swapped = b.arrive("d", tokens=(("audio", zeros(4, 4, 2)), ("image", zeros(4, 4, 2))))
    evaluation = b.arrive("e", mode=Mode.EVAL)
    small = b.arrive("f", num_samples=2)
    assert b.forward() == (a, small)
    assert b.forward() == (sound,)
    assert b.forward() == (both, swapped)
    assert b.forward() == (evaluation,)


def test_before_training_only_evaluations_go_forward() -> None:
    b = bench()
    b.is_training = False
    b.arrive("a")
    evaluation = b.arrive("a", mode=Mode.EVAL)
    assert b.forward() == (evaluation,)
    assert b.next() is None


def test_an_evaluation_is_done_with_its_outputs() -> None:
    b = bench()
    key = b.arrive("a", mode=Mode.EVAL)
    b.forward()
    assert key not in b.in_hand.exchanges
    assert b.next() is None


def test_a_group_is_not_larger_than_a_window_should_be() -> None:
    b = bench(samples=8, credits=9)
    keys = [b.arrive("a", step) for step in range(3)]
    evaluations = [b.arrive("a", step, Mode.EVAL) for step in range(3)]
    assert list(b.forward()) == keys[:2]
    assert list(b.forward()) == keys[2:]
    assert list(b.forward()) == evaluations, "what is not committed may go together"


# Backward ----------------------------------------------------------------------------------------------------


def test_backward_waits_for_all_of_its_group_and_goes_before_forward() -> None:
    b = bench()
    keys = [b.arrive("a"), b.arrive("b")]
    b.forward()
    b.gradients(keys[0])
    assert b.next() is None
    late = b.arrive("c")
    b.gradients(keys[1])
    work = b.next()
    assert isinstance(work, Backward)
    assert work.last
    assert b.backward() == tuple(keys)
    assert b.forward() == (late,)


def test_after_the_deadline_backward_runs_for_those_that_are_there_and_the_graph_stays() -> None:
    b = bench(samples=99)
    first, second = b.arrive("a"), b.arrive("b")
    b.forward()
    b.now = 5.0
    b.gradients(first)
    assert b.scheduler.deadlines() == [6.0]
    b.now = 5.999
    assert b.next() is None
    b.now = 6.0
    work = b.next()
    assert isinstance(work, Backward)
    assert not work.last
    assert b.backward() == (first,)
    b.gradients(second)
    work = b.next()
    assert isinstance(work, Backward)
    assert work.last
    assert b.backward() == (second,)
    assert b.scheduler.deadlines() == [7.0], "the window's own"


def test_the_deadline_of_a_group_starts_anew_when_its_only_gradients_were_of_no_use() -> None:
    b = bench(samples=99)
    bad, good, _ = b.arrive("a"), b.arrive("b"), b.arrive("c")
    b.forward()
    b.gradients(bad)
    b.in_hand.discard(bad)
    assert b.scheduler.deadlines() == []
    b.now = 0.02
    b.gradients(good)
    assert b.next() is None
    assert b.scheduler.deadlines() == [pytest.approx(SLOW_AFTER_S)]
