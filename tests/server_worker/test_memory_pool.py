"""The pool in memory: who takes part in a round, who heals from whom, and what a round leaves."""

from __future__ import annotations

import pytest
import torch

from cutlayer.broker.ledger import Ledger
from cutlayer.broker.pool_round import WindowPart
from cutlayer.server_worker.checkpoint import Checkpoint
from cutlayer.server_worker.memory_pool import MemoryLighthouse, MemoryPool
from cutlayer.server_worker.parameters import EngineState
from cutlayer.server_worker.pool import RoundResult, RoundTask
from support.manual_clock import ManualClock


class Meeting:
    """A lighthouse, and members that bring what the test says."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.failing: set[str] = set()
        self.lighthouse = MemoryLighthouse(self.clock, join_timeout_s=5.0, fails=lambda name: name in self.failing)
        self.pools: dict[str, MemoryPool] = {}
        self.num_snapshots = 0

    def add(self, name: str, step: int = 1) -> None:
        self.pools[name] = MemoryPool(self.lighthouse, name)
        self.pools[name].start_from(step)

    def begin(self, name: str, *steps: int, is_due: bool | None = True) -> None:
        own = tuple((name, step) for step in steps)
        part = WindowPart(name, 3, 3, "" if is_due is None else "same", own, len(own), bytes([1]), 100, is_due)
        sums = [torch.full((2,), float(sum(steps)))]
        self.pools[name].begin(RoundTask(part, sums, Ledger(), is_synchronous=False, snapshot=self.snapshot))

    def snapshot(self) -> Checkpoint:
        self.num_snapshots += 1
        return Checkpoint(EngineState(3, {}, {}), Ledger().to_bytes(), {"window": 3})

    def result(self, name: str) -> RoundResult:
        result = self.pools[name].poll()
        assert result is not None
        return result

    def seat(self, *names: str) -> None:
        """Let members have a round that commits nothing; a member is known from its first round on."""
        self.lighthouse.is_up = False
        for name in names:
            self.begin(name, is_due=False)
        self.lighthouse.is_up = True
        for name in names:
            self.result(name)


def meeting(*names: str) -> Meeting:
    """Return a meeting whose members know each other."""
    place = Meeting()
    for name in names:
        place.add(name)
    place.seat(*names)
    return place


def sums_of(result: RoundResult) -> list[float]:
    assert result.sums is not None
    return [float(value) for value in result.sums[0]]


def test_a_round_ends_when_everybody_has_begun_it_and_is_told_once() -> None:
    place = meeting("w0", "w1")
    place.begin("w0", 1)
    assert place.pools["w0"].poll() is None
    place.begin("w1", 2)
    for name in ("w0", "w1"):
        result = place.result(name)
        assert result.verdict is not None
        assert result.verdict.commits
        assert result.workers == ("w0", "w1")
        assert sums_of(result) == [3.0, 3.0]
        assert place.pools[name].poll() is None


def test_no_member_sees_what_another_does_to_its_sums() -> None:
    place = meeting("w0", "w1")
    place.begin("w0", 1)
    place.begin("w1", 2)
    first, second = place.result("w0"), place.result("w1")
    assert first.sums is not None
    first.sums[0].zero_()
    assert sums_of(second) == [3.0, 3.0]


def test_who_does_not_begin_is_not_waited_for_longer_than_the_timeout() -> None:
    place = meeting("w0", "w1")
    place.begin("w0", 1)
    place.clock.now_s += 4.999
    assert place.pools["w0"].poll() is None
    place.clock.now_s += 0.001
    result = place.result("w0")
    assert result.workers == ("w0",)
    assert sums_of(result) == [1.0, 1.0]


def test_whoever_has_missed_a_round_takes_over_and_its_sums_do_not_count() -> None:
    place = meeting("w0", "w1")
    place.begin("w0", 1)
    place.clock.now_s += 5.0
    place.result("w0")
    place.begin("w0", 3)
    place.begin("w1", 2)
    first, second = place.result("w0"), place.result("w1")
    assert first.taken_over is None
    assert second.taken_over is not None
    assert sums_of(first) == sums_of(second) == [3.0, 3.0]
    assert second.verdict == first.verdict
    assert first.verdict is not None
    assert first.verdict.steps == (("w0", 3),)
    assert place.num_snapshots == 1


def test_who_dies_during_a_round_ends_it_for_the_others() -> None:
    place = meeting("w0", "w1")
    place.begin("w0", 1)
    place.pools["w1"].close()
    assert place.result("w0").workers == ("w0",)


def test_who_loses_the_others_commits_nothing_and_is_behind_in_the_next_round() -> None:
    place = meeting("w0", "w1")
    place.failing = {"w1"}
    place.begin("w0", 1)
    place.begin("w1", 2)
    assert sums_of(place.result("w0")) == [3.0, 3.0], "the others have its sums by then"
    failed = place.result("w1")
    assert failed.failure
    assert failed.verdict is None
    assert failed.sums is None
    place.failing = set()
    place.begin("w0", 4)
    place.begin("w1", 5)
    assert place.result("w1").taken_over is not None
    assert sums_of(place.result("w0")) == [4.0, 4.0]


def test_who_was_to_take_over_in_a_round_that_fails_for_all_takes_over_in_the_next() -> None:
    place = meeting("w0", "w1")
    place.begin("w0", 1)
    place.clock.now_s += 5.0
    place.result("w0")
    place.failing = {"w0", "w1"}
    place.begin("w0", 2)
    place.begin("w1", 3)
    assert place.result("w0").failure
    assert place.result("w1").failure
    place.failing = set()
    place.begin("w0", 2)
    place.begin("w1", 3)
    assert place.result("w1").taken_over is not None
    assert place.result("w0").taken_over is None


def test_of_members_that_have_committed_nothing_one_gives_its_weights_to_the_others() -> None:
    place = Meeting()
    place.lighthouse.is_up = False
    for name in ("w0", "w1", "w2"):
        place.add(name, step=0)
        place.begin(name, is_due=None)
    place.lighthouse.is_up = True
    taken = [name for name in ("w0", "w1", "w2") if place.result(name).taken_over is not None]
    assert len(taken) == 2
    assert place.num_snapshots == 1


def test_the_furthest_hands_its_state_to_the_others() -> None:
    place = Meeting()
    place.lighthouse.is_up = False
    for name, step in (("w0", 5), ("w1", 9)):
        place.add(name, step)
        place.begin(name, is_due=None)
    place.lighthouse.is_up = True
    assert place.result("w0").taken_over is not None
    assert place.result("w1").taken_over is None


def test_no_round_ends_while_the_lighthouse_is_down() -> None:
    place = meeting("w0")
    place.lighthouse.is_up = False
    place.begin("w0", 1)
    place.clock.now_s += 100.0
    assert place.pools["w0"].poll() is None
    place.lighthouse.is_up = True
    assert sums_of(place.result("w0")) == [1.0, 1.0]


def test_the_generation_changes_with_who_takes_part() -> None:
    place = meeting("w0", "w1")
    place.begin("w0")
    place.begin("w1")
    same = place.result("w0").generation
    place.begin("w0")
    place.begin("w1")
    assert place.result("w0").generation == same
    place.pools["w1"].close()
    place.begin("w0")
    alone = place.result("w0").generation
    assert alone > same
    place.add("w1", step=0)
    place.begin("w1", is_due=None)
    place.begin("w0")
    assert place.result("w0").generation > alone, "a new process under the same name"


def test_a_part_that_is_left_out_is_not_in_the_sums() -> None:
    place = meeting("w0", "w1")
    place.begin("w0", 1)
    part = WindowPart("w1", 3, 3, "same", (("w0", 1), ("w1", 7)), 2, bytes([1]), 100, is_due=True)
    task = RoundTask(part, [torch.full((2,), 99.0)], Ledger(), is_synchronous=False, snapshot=place.snapshot)
    place.pools["w1"].begin(task)
    result = place.result("w1")
    assert result.verdict is not None
    assert result.verdict.rejected == ("w1",)
    assert sums_of(result) == [1.0, 1.0]


def test_nothing_is_added_up_when_no_window_closes() -> None:
    place = meeting("w0")
    place.begin("w0", 1, is_due=False)
    result = place.result("w0")
    assert result.sums is None
    assert not result.failure


def test_there_is_one_round_at_a_time_and_no_result_without_one() -> None:
    place = meeting("w0", "w1")
    assert place.pools["w0"].poll() is None
    assert MemoryPool(place.lighthouse, "w9").poll() is None
    place.begin("w0", 1)
    with pytest.raises(AssertionError, match="one round"):
        place.begin("w0", 1)
