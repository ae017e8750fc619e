"""What the workers of a pool conclude from their parts of a window."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.pool_round import Verdict, WindowPart, judge
from cutlayer.broker.selection import Judgement
from support.message_values import mutated

STEPS = st.tuples(st.sampled_from(("a", "b", "c")), st.integers(0, 5))


def part(worker: str, *steps: tuple[str, int], **changes: Any) -> WindowPart:
    """Return the part of a worker of the same weights that finds the window due; four samples a step."""
    given = WindowPart(worker, 3, 3, "same", steps, 4 * len(steps), bytes([1, 1]), planned_samples=100, is_due=True)
    return replace(given, **changes)


def ledger_of(*steps: tuple[str, int]) -> Ledger:
    ledger = Ledger()
    for agent, step in steps:
        ledger.add(agent, step)
    return ledger


def verdict_of(*parts: WindowPart, committed: Iterable[tuple[str, int]] = (), is_synchronous: bool = False) -> Verdict:
    return judge(parts, ledger_of(*committed), is_synchronous=is_synchronous)


@st.composite
def parts_of_a_round(draw: st.DrawFn) -> list[WindowPart]:
    """Whatever workers may bring, a step twice in one part included."""
    return [
        WindowPart(
            worker=f"w{index}",
            window=draw(st.integers(0, 3)),
            version=draw(st.integers(0, 3)),
            digest=draw(st.sampled_from(("", "same", "other"))),
            steps=tuple(draw(st.lists(STEPS, max_size=4))),
            num_samples=draw(st.integers(0, 16)),
            present=draw(st.binary(max_size=3)),
            planned_samples=draw(st.none() | st.integers(0, 100)),
            is_due=draw(st.none() | st.booleans()),
        )
        for index in range(draw(st.integers(1, 4)))
    ]


# Which parts -------------------------------------------------------------------------------------------------


def test_parts_without_a_step_in_common_make_up_the_window() -> None:
    verdict = verdict_of(part("w0", ("a", 0), ("b", 0)), part("w1", ("c", 0)))
    assert verdict == Verdict(
        commits=True,
        accepted=("w0", "w1"),
        rejected=(),
        differing=(),
        steps=(("a", 0), ("b", 0), ("c", 0)),
        num_samples=12,
        planned_samples=100,
        present=bytes([1, 1]),
    )


def test_a_part_with_a_step_of_a_part_before_is_left_out_whole() -> None:
    verdict = verdict_of(part("w0", ("a", 0)), part("w1", ("b", 0), ("a", 0)), part("w2", ("b", 0)))
    assert (verdict.accepted, verdict.rejected) == (("w0", "w2"), ("w1",))
    assert verdict.steps == (("a", 0), ("b", 0))
    assert verdict.num_samples == 8
    assert verdict.commits


def test_a_part_with_a_committed_step_is_left_out_whole() -> None:
    verdict = verdict_of(part("w0", ("a", 0), ("b", 0)), part("w1", ("c", 0)), committed=[("b", 0)])
    assert (verdict.accepted, verdict.rejected) == (("w1",), ("w0",))
    assert verdict.steps == (("c", 0),)


def test_a_part_with_a_step_twice_is_left_out_whole() -> None:
    verdict = verdict_of(part("w0", ("a", 0), ("a", 0)), part("w1", ("a", 0)))
    assert (verdict.accepted, verdict.rejected) == (("w1",), ("w0",))


def test_another_agents_step_of_the_same_number_is_another_step() -> None:
    assert verdict_of(part("w0", ("a", 0)), part("w1", ("b", 0)), committed=[("c", 0), ("a", 1)]).rejected == ()


def test_an_empty_part_is_accepted_and_adds_nothing() -> None:
    verdict = verdict_of(part("w0", present=b""), part("w1", ("a", 0)))
    assert verdict.accepted == ("w0", "w1")
    assert (verdict.num_samples, verdict.present) == (4, bytes([1, 1]))


def test_a_parameter_is_present_when_an_accepted_part_has_reached_it() -> None:
    verdict = verdict_of(
        part("w0", ("a", 0), present=bytes([0, 0, 1, 0])),
        part("w1", ("b", 0), present=bytes([0, 1, 0, 0])),
        part("w2", ("a", 0), present=bytes([1, 1, 1, 1])),
    )
    assert verdict.present == bytes([0, 1, 1, 0])


# Whether it closes -------------------------------------------------------------------------------------------


def test_an_asynchronous_window_closes_when_one_finds_it_due() -> None:
    not_due = part("w1", ("b", 0), is_due=False)
    assert verdict_of(part("w0", ("a", 0)), not_due).commits
    assert not verdict_of(part("w0", ("a", 0), is_due=False), not_due).commits


def test_a_synchronous_window_closes_when_all_find_it_due() -> None:
    due, not_due = part("w0", ("a", 0)), part("w1", ("b", 0), is_due=False)
    assert not verdict_of(due, not_due, is_synchronous=True).commits
    assert verdict_of(due, part("w1", ("b", 0)), is_synchronous=True).commits


@pytest.mark.parametrize("is_synchronous", [False, True])
def test_a_worker_that_joins_has_no_say(is_synchronous: bool) -> None:
    joins = part("w1", digest="", is_due=None, num_samples=0, present=b"", planned_samples=None)
    assert verdict_of(part("w0", ("a", 0)), joins, is_synchronous=is_synchronous).commits
    assert not verdict_of(part("w0", ("a", 0), is_due=False), joins, is_synchronous=is_synchronous).commits
    assert not verdict_of(joins, is_synchronous=is_synchronous).commits, "nobody has a say"


@pytest.mark.parametrize("is_synchronous", [False, True])
def test_a_window_without_samples_never_closes(is_synchronous: bool) -> None:
    assert not verdict_of(part("w0"), part("w1"), is_synchronous=is_synchronous).commits
    all_known = verdict_of(part("w0", ("a", 0)), committed=[("a", 0)], is_synchronous=is_synchronous)
    assert not all_known.commits


def test_a_synchronous_window_waits_for_an_agent_that_is_missing_because_its_part_was_left_out() -> None:
    parts = part("w0", ("a", 0)), part("w1", ("a", 0), ("b", 0))
    assert not verdict_of(*parts, is_synchronous=True).commits
    assert verdict_of(*parts).commits, "an asynchronous one does without"
    complete = part("w0", ("a", 0), ("b", 1)), part("w1", ("a", 0), ("b", 1))
    assert verdict_of(*complete, is_synchronous=True).commits, "the others have its agents"


@pytest.mark.parametrize("is_synchronous", [False, True])
def test_nothing_is_committed_while_weights_differ(is_synchronous: bool) -> None:
    verdict = verdict_of(
        part("w0", ("a", 0)),
        part("w1", ("b", 0), digest="other"),
        part("w2", ("c", 0)),
        is_synchronous=is_synchronous,
    )
    assert verdict.differing == ("w1",)
    assert not verdict.commits


def test_weights_that_were_only_just_taken_over_do_not_differ() -> None:
    assert verdict_of(part("w0", digest=""), part("w1", ("a", 0))).differing == ()


def test_the_plan_is_that_of_the_worker_that_knows_of_most() -> None:
    parts = part("w0", ("a", 0), planned_samples=10), part("w1", planned_samples=30)
    assert verdict_of(*parts).planned_samples == 30
    joins = part("w2", is_due=None, planned_samples=99)
    assert verdict_of(*parts, joins).planned_samples == 30, "one that joins knows of nobody"
    assert verdict_of(*parts, part("w3", planned_samples=None)).planned_samples is None, "a service has no plan"


# Any parts ---------------------------------------------------------------------------------------------------


@given(parts_of_a_round(), st.lists(STEPS, max_size=6), st.booleans())
def test_a_step_is_never_accepted_twice(
    parts: list[WindowPart], committed: list[tuple[str, int]], is_synchronous: bool
) -> None:
    verdict = verdict_of(*parts, committed=committed, is_synchronous=is_synchronous)
    assert max(Counter([*verdict.steps, *set(committed)]).values(), default=1) == 1
    assert sorted([*verdict.accepted, *verdict.rejected]) == [one.worker for one in parts]
    accepted = [one for one in parts if one.worker in verdict.accepted]
    assert list(verdict.steps) == [step for one in accepted for step in one.steps]
    assert verdict.num_samples == sum(one.num_samples for one in accepted)


@given(parts_of_a_round(), st.lists(STEPS, max_size=6), st.booleans())
def test_whoever_judges_comes_to_the_same_verdict(
    parts: list[WindowPart], committed: list[tuple[str, int]], is_synchronous: bool
) -> None:
    """Each judges what it has read from bytes, with its own copy of the ledger."""
    ledger = ledger_of(*committed)
    read = [WindowPart.from_bytes(one.to_bytes()) for one in parts]
    copied = Ledger.from_bytes(ledger.to_bytes())
    assert judge(read, copied, is_synchronous=is_synchronous) == judge(parts, ledger, is_synchronous=is_synchronous)
    assert copied.to_bytes() == ledger.to_bytes(), "judging changes no ledger"


# Bytes -------------------------------------------------------------------------------------------------------


@given(parts_of_a_round())
def test_a_part_survives_its_bytes(parts: list[WindowPart]) -> None:
    for one in parts:
        assert WindowPart.from_bytes(one.to_bytes()) == one


GOOD: list[Any] = [
    *("w0", 3, 4, "same", [["a", 0], ["b", 7]], 8, b"\x01", 100, True, ["a", "c"]),
    *([["c0ffee", 0.5, None, 64]], True),
]


def test_the_bytes_of_a_part_are_its_fields_in_order() -> None:
    steps = (("a", 0), ("b", 7))
    one = WindowPart(
        *("w0", 3, 4, "same", steps, 8, b"\x01", 100, True, ("a", "c")),
        judged=(Judgement("c0ffee", 0.5, None, 64),),
        is_over=True,
    )
    assert msgpack.unpackb(one.to_bytes()) == GOOD
    assert WindowPart.from_bytes(one.to_bytes()) == one


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb(None),
        msgpack.packb(GOOD[:-1]),
        msgpack.packb([*GOOD, 1]),
        msgpack.packb(GOOD) + b"\x00",
        *[
            msgpack.packb([*GOOD[:index], wrong, *GOOD[index + 1 :]])
            for index, wrong in [
                (0, 5),
                (1, "3"),
                (1, -1),
                (1, True),
                (2, None),
                (3, b"same"),
                (4, None),
                (4, [["a"]]),
                (4, [["a", "0"]]),
                (4, [["a", -1]]),
                (4, [["a", float("inf")]]),
                (4, [[["a"], 0]]),
                (5, 1.5),
                (6, "mask"),
                (7, "100"),
                (8, 1),
                (9, None),
                (9, [7]),
                (10, None),
                (10, [["c0ffee", 0.5, None]]),
                (10, [["c0ffee", "0.5", None, 64]]),
                (10, [["c0ffee", 0.5, None, -1]]),
                (11, 1),
            ]
        ],
    ],
)
def test_other_bytes_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="part of a window"):
        WindowPart.from_bytes(data)


def test_what_any_part_says_of_candidates_is_in_the_verdict_and_an_end_only_if_nobody_holds_a_step() -> None:
    first, second = Judgement("c0ffee", 0.5, 1.0, 64), Judgement("c0ffee", 0.6, 0.9, 32)
    idle = [
        replace(part("w0"), is_due=False, judged=(first,), is_over=True),
        replace(part("w1"), is_due=False, judged=(second,)),
    ]
    verdict = judge(idle, Ledger(), is_synchronous=False)
    assert (verdict.commits, verdict.judged, verdict.is_over) == (False, (first, second), True)
    busy = [idle[0], replace(part("w1", ("a", 0)), is_due=False)]
    assert not judge(busy, Ledger(), is_synchronous=False).is_over


@given(mutated(part("w0", ("a", 0), ("b", 7)).to_bytes()))
def test_bytes_that_were_changed_are_a_part_or_malformed(data: bytes) -> None:
    try:
        read = WindowPart.from_bytes(data)
    except MalformedMessage:
        return
    assert WindowPart.from_bytes(read.to_bytes()) == read


def test_a_synchronous_window_does_not_close_without_an_agent_that_somebody_waits_for() -> None:
    waiting = dataclasses.replace(part("w0", ("a", 0)), waits_for=("a", "b"))
    assert not verdict_of(waiting, is_synchronous=True).commits, "the worker that holds b's is not in this round"
    assert verdict_of(waiting, part("w1", ("b", 0)), is_synchronous=True).commits
    assert verdict_of(waiting, is_synchronous=False).commits
