"""The ledger of committed steps, against a plain set."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.ledger import Ledger, StepRanges
from support.message_values import mutated

STEPS = st.integers(0, 30)


class RangesAgainstASet(RuleBasedStateMachine):
    """Whatever is added in whatever order, the ranges say what a set says."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges = StepRanges()
        self.steps: set[int] = set()

    @rule(step=STEPS)
    def add(self, step: int) -> None:
        assert self.ranges.add(step) is (step not in self.steps)
        self.steps.add(step)

    @rule()
    def write_and_read(self) -> None:
        self.ranges = StepRanges(tuple(self.ranges))

    @invariant()
    def says_the_same(self) -> None:
        assert {step for start, stop in self.ranges for step in range(start, stop)} == self.steps
        assert len(self.ranges) == len(self.steps)
        assert all((step in self.ranges) is (step in self.steps) for step in range(-1, 33))
        assert self.ranges.first_missing() == min(set(range(32)) - self.steps)

    @invariant()
    def is_sorted_and_nothing_touches(self) -> None:
        edges = [edge for pair in self.ranges for edge in pair]
        assert edges == sorted(set(edges))


test_ranges_say_what_a_set_says = RangesAgainstASet.TestCase


@pytest.mark.parametrize("ranges", [((1, 1),), ((2, 1),), ((0, 2), (1, 3)), ((0, 2), (2, 3)), ((4, 5), (0, 1))])
def test_ranges_that_are_empty_or_out_of_order_are_malformed(ranges: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(MalformedMessage, match="step range"):
        StepRanges(ranges)


def test_a_ledger_keeps_agents_apart() -> None:
    ledger = Ledger()
    assert ledger.add("a", 3)
    assert not ledger.add("a", 3)
    assert ledger.add("b", 3)
    assert ledger.agents() == ("a", "b")
    assert 3 in ledger.of("a")
    assert 3 not in ledger.of("c")
    assert ledger.agents() == ("a", "b"), "to ask is not to add"


@given(st.dictionaries(st.text(max_size=9), st.sets(STEPS, max_size=9), max_size=4))
def test_a_ledger_comes_back_as_it_was(content: dict[str, set[int]]) -> None:
    ledger = Ledger()
    for agent, steps in content.items():
        for step in steps:
            ledger.add(agent, step)
    again = Ledger.from_bytes(ledger.to_bytes())
    assert {agent: list(again.of(agent)) for agent in content} == {agent: list(ledger.of(agent)) for agent in content}


def test_the_bytes_of_a_ledger() -> None:
    ledger = Ledger()
    for step in (0, 1, 2, 5):
        ledger.add("b", step)
    ledger.add("a", 0)
    assert ledger.to_bytes() == msgpack.packb({"a": [0, 1], "b": [0, 3, 5, 6]})


@pytest.mark.parametrize(
    "content",
    [
        None,
        1,
        [],
        {"a": 1},
        {"a": None},
        {"a": [1]},
        {"a": [1, 0]},
        {"a": [0, 2, 1, 3]},
        {"a": "abcd"},
        {"a": b"abcd"},
        {"a": [0.5, 1.5]},
        {"a": [-3, 5]},
        {"a": [False, True]},
        {"a": [None, None]},
        {b"a": [0, 1]},
        {1: [0, 1]},
    ],
)
def test_what_is_no_ledger_is_malformed(content: object) -> None:
    with pytest.raises(MalformedMessage, match=r"ledger|step range"):
        Ledger.from_bytes(msgpack.packb(content))


GOOD = {"clinic/07": [0, 3, 5, 6], "b": [0, 1]}


@given(st.binary(max_size=60) | mutated(msgpack.packb(GOOD)))
def test_arbitrary_and_damaged_bytes_raise_nothing_else(data: bytes) -> None:
    try:
        ledger = Ledger.from_bytes(data)
    except MalformedMessage:
        return
    assert Ledger.from_bytes(ledger.to_bytes()).to_bytes() == ledger.to_bytes()
