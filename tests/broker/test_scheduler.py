"""What a worker computes next: which microbatches go together, when backward runs, when a window closes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from cutlayer.broker.leases import Lease
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import WindowSpec
from cutlayer.broker.messages import Activations, Mode, NegotiatedCodecs
from cutlayer.broker.pool_members import OthersInWindow
from cutlayer.broker.scheduler import Scheduler
from cutlayer.broker.states import ExchangeState
from cutlayer.broker.work import Backward, Commit, Exchange, Forward, Key, Release, Work
from support.conversation import image_tokens, zeros

SLOW_AFTER_S = 0.05
"""Of windows whose deadline is 1 s, where agents answer at once."""
CODECS = NegotiatedCodecs("identity", "identity", "identity", "identity")


@dataclass
class Bench:
    """A scheduler with what a session gives it: leases, a ledger, credits and the time."""

    scheduler: Scheduler
    credits: int = 2
    is_training: bool = True
    planned_samples: int | None = None
    now: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    leases: dict[str, Lease] = field(default_factory=dict)
    others: OthersInWindow | None = None
    may_commit: bool = True

    def lease(self, *agents: str, total_steps: int = 99) -> None:
        for agent in agents:
            self.leases[agent] = Lease(agent, len(self.leases), 1, 4, total_steps, CODECS, 0.0)

    def arrive(
        self, agent: str, step: int = 0, mode: Mode = Mode.TRAIN, num_samples: int = 4, tokens: Any = None
    ) -> Key:
        """An agent's activations come."""
        if agent not in self.leases:
            self.lease(agent)
        key = Key(agent, mode, step)
        message = Activations(0, step, mode, num_samples, tokens or image_tokens(num_samples))
        self.scheduler.add(Exchange(key, 0, message, ExchangeState.ACTIVATIONS, num_samples, self.now))
        return key

    def next(self) -> Work | None:
        """Return what is to be done next."""
        return self.scheduler.next_work(
            [lease for lease in self.leases.values() if not lease.is_done],
            self.ledger,
            is_training=self.is_training,
            credits=self.credits,
            planned_samples=self.planned_samples,
            now=self.now,
            others=self.others,
            may_commit=self.may_commit,
        )

    def forward(self) -> tuple[Key, ...]:
        """Do the forward pass that is next; return its microbatches."""
        work = self.next()
        assert isinstance(work, Forward)
        keys = tuple(key for key, _ in work.microbatches)
        self.scheduler.forwarded(work.group, keys, self.scheduler.version, self.now)
        return keys

    def gradients(self, *keys: Key) -> None:
        """The output gradients of some microbatches come."""
        for key in keys:
            exchange = self.scheduler.exchanges[key]
            self.scheduler.take_gradients(exchange, zeros(exchange.num_samples, 2), self.now)

    def late_gradients(self, key: Key) -> None:
        """The output gradients of a microbatch come whose graph was given up."""
        self.scheduler.forward_again(self.scheduler.exchanges[key], self.now)

    def backward(self) -> tuple[Key, ...]:
        """Do the backward pass that is next; return its microbatches."""
        work = self.next()
        assert isinstance(work, Backward)
        self.scheduler.backward_done(work.group, self.now)
        return tuple(key for key, _ in work.gradients)

    def through(self, *keys: Key) -> None:
        """Bring microbatches that went forward into the window."""
        self.gradients(*keys)
        done: list[Key] = []
        while len(done) < len(keys):
            done += self.backward()

    def commit(self) -> list[Key]:
        """Take the step that is next; return its microbatches."""
        work = self.next()
        assert isinstance(work, Commit)
        done = [exchange.key for exchange in self.scheduler.committed(self.scheduler.version + 1)]
        for key in done:
            self.ledger.add(key.agent, key.step)
        return done


def bench(
    *,
    max_batch_samples: int = 64,
    credits: int = 2,  # noqa: A002 - the protocol's word
    is_contrasted: bool = False,
    **window: object,
) -> Bench:
    """Return a bench; other keywords are the window's."""
    spec = WindowSpec.model_validate({"mode": "asynchronous", "samples": 64, "deadline_s": 1.0, **window})
    return Bench(Scheduler(spec, max_batch_samples, 0, 0, 0, is_contrasted=is_contrasted), credits=credits)


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
    assert agents.scheduler.version == 1


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
    assert key not in b.scheduler.exchanges
    assert b.next() is None


def test_what_was_forgotten_during_its_forward_pass_is_not_wanted_any_more() -> None:
    b = bench()
    gone, kept = b.arrive("a"), b.arrive("b")
    work = b.next()
    assert isinstance(work, Forward)
    b.scheduler.abandon("a")
    wanted = b.scheduler.forwarded(work.group, (gone, kept), 0, b.now)
    assert [exchange.key for exchange in wanted] == [kept]


def test_a_group_that_nobody_wants_is_released_once() -> None:
    b = bench()
    b.arrive("a")
    b.forward()
    b.scheduler.abandon("a")
    assert b.next() == Release(0)
    assert b.next() is None


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


def test_a_group_that_loses_the_agent_that_it_waits_for_goes_backward_without() -> None:
    b = bench(samples=4)
    here, gone = b.arrive("a"), b.arrive("b")
    b.forward()
    b.gradients(here)
    b.scheduler.abandon("b")
    assert gone not in b.scheduler.exchanges
    assert b.backward() == (here,)
    assert b.commit() == [here]


def test_what_has_sent_its_gradients_is_kept_when_its_agent_is_gone() -> None:
    b = bench(samples=4)
    key = b.arrive("a")
    b.forward()
    b.gradients(key)
    b.scheduler.abandon("a")
    assert b.backward() == (key,)
    b.scheduler.abandon("a")
    assert b.commit() == [key]


def test_gradients_that_cannot_be_decoded_leave_their_group() -> None:
    b = bench(credits=1)
    bad, good = b.arrive("a"), b.arrive("b")
    b.forward()
    b.gradients(bad, good)
    b.scheduler.discard(bad)
    assert b.backward() == (good,)
    b.scheduler.discard(good)  # it is in the window by now
    del b.leases["a"]
    assert b.commit() == [good]


def test_the_deadline_of_a_group_starts_anew_when_its_only_gradients_were_of_no_use() -> None:
    b = bench(samples=99)
    bad, good, _ = b.arrive("a"), b.arrive("b"), b.arrive("c")
    b.forward()
    b.gradients(bad)
    b.scheduler.discard(bad)
    assert b.scheduler.deadlines() == []
    b.now = 0.02
    b.gradients(good)
    assert b.next() is None
    assert b.scheduler.deadlines() == [pytest.approx(SLOW_AFTER_S)]


# Slow agents -------------------------------------------------------------------------------------------------


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
    b.scheduler._pace.takes_at_least("other", 0.9)
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
    b.scheduler.give_up_stale(b.now)
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
    b.scheduler.abandon("slow")
    fast, slow = b.arrive("fast", 1), b.arrive("slow", 1)
    assert b.forward() == (fast, slow)


# Windows -----------------------------------------------------------------------------------------------------


def test_a_window_closes_at_its_number_of_samples() -> None:
    b = bench(samples=12, credits=9)
    keys = [b.arrive("a", step) for step in range(3)]
    b.forward()
    b.through(*keys)
    work = b.next()
    assert work == Commit(0, 12, 3, None)
    assert b.commit() == keys
    assert b.scheduler.window == b.scheduler.version == 1
    assert b.scheduler.committed_samples == 12


def test_a_group_is_not_larger_than_a_window_should_be() -> None:
    b = bench(samples=8, credits=9)
    keys = [b.arrive("a", step) for step in range(3)]
    evaluations = [b.arrive("a", step, Mode.EVAL) for step in range(3)]
    assert list(b.forward()) == keys[:2]
    assert list(b.forward()) == keys[2:]
    assert list(b.forward()) == evaluations, "what is not committed may go together"


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
        key = b.arrive("a", b.scheduler.window)
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
    b.scheduler.abandon("a")
    missing = b.arrive("a", 1)
    assert b.forward() == (missing,)
    b.through(missing)
    assert b.commit() == [missing]


def test_evaluations_need_not_wait_in_synchronous_mode() -> None:
    b = bench(mode="synchronous")
    b.arrive("a", 1)
    evaluation = b.arrive("a", mode=Mode.EVAL)
    assert b.forward() == (evaluation,)


# In a pool ---------------------------------------------------------------------------------------------------


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
    b.scheduler.abandon("a")
    b.scheduler.discard(key)
    assert b.scheduler.in_window == (key,)
    assert b.scheduler.window_samples == 4
    b.scheduler.is_in_round = False
    assert b.commit() == [key]
    assert b.backward() == (ready,)


def test_a_commit_counts_the_samples_of_all_workers() -> None:
    b = bench(samples=4)
    key = b.arrive("a")
    b.forward()
    b.through(key)
    assert [exchange.key for exchange in b.scheduler.committed(7, 40)] == [key]
    assert (b.scheduler.window, b.scheduler.version, b.scheduler.committed_samples) == (1, 7, 40)
    assert b.scheduler.progress(10, 100) == 0.5


def test_a_window_that_is_emptied_is_open_as_if_nothing_had_come() -> None:
    b = bench(samples=99)
    key = b.arrive("a")
    b.forward()
    b.through(key)
    assert [exchange.key for exchange in b.scheduler.empty_window()] == [key]
    assert (b.scheduler.in_window, b.scheduler.window_samples) == ((), 0)
    assert b.scheduler.deadlines() == []
    assert b.scheduler.window == 0
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
    done = b.scheduler.take_committed(b.ledger)
    assert [exchange.key for exchange in done] == [forwarded, ready, arrived]
    assert set(b.scheduler.exchanges) == {kept, waiting, evaluation}
    assert b.forward() == (evaluation,)
    b.through(kept, waiting)
    assert set(b.scheduler.in_window) == {kept, waiting}


def test_what_is_in_the_window_is_not_taken_for_committed_elsewhere() -> None:
    b = bench(samples=99)
    key = b.arrive("a")
    b.forward()
    b.through(key)
    b.ledger.add("a", 0)
    assert b.scheduler.take_committed(b.ledger) == []
    assert b.scheduler.in_window == (key,)


def test_a_group_of_which_everything_was_committed_elsewhere_is_released() -> None:
    b = bench()
    b.arrive("a")
    b.forward()
    b.ledger.add("a", 0)
    b.scheduler.take_committed(b.ledger)
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
    b.scheduler.discard(gone)
    arrived = b.arrive("a", 2)
    lost = b.scheduler.start_over(5, 6, 70)
    assert [exchange.key for exchange in lost] == [in_window, waiting]
    assert (b.scheduler.window, b.scheduler.version, b.scheduler.committed_samples) == (5, 6, 70)
    assert (b.scheduler.in_window, b.scheduler.window_samples) == ((), 0)
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
        b.scheduler.give_up_stale(b.now)
        assert b.scheduler.exchanges[slow].group == 0
    commit_one(b, max_staleness)
    b.scheduler.give_up_stale(b.now)
    assert b.scheduler.exchanges[slow].group is None
    assert b.next() == Release(0)
    assert b.next() is None, "it goes forward again when its gradients come, and no earlier"
    b.scheduler.give_up_stale(b.now)
    assert b.next() is None


def test_a_microbatch_whose_graph_was_given_up_goes_forward_again_when_its_gradients_come() -> None:
    b = bench(samples=4, max_staleness=0)
    slow = b.arrive("a")
    b.forward()
    commit_one(b, 0)
    b.scheduler.give_up_stale(b.now)
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
    b.scheduler.forwarded(work.group, tuple(key for key, _ in work.microbatches), 1, b.now)
    commit_one(b, 0)
    b.scheduler.give_up_stale(b.now)
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
    b.scheduler.give_up_stale(b.now)
    assert list(b.scheduler.exchanges) == [slow]
    assert b.scheduler.exchanges[slow].group is None


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
    b.scheduler.give_up_stale(b.now)
    assert b.next() == Release(0)
    assert b.forward() == (early,)
    assert b.scheduler.exchanges[waiting].group is None
    assert b.next() is None


def test_an_agents_microbatches_are_counted() -> None:
    b = bench(samples=4)
    b.arrive("a", 0)
    b.arrive("a", 1)
    b.arrive("b", 0)
    assert b.scheduler.num_of("a") == 2
    assert b.scheduler.num_of("c") == 0
