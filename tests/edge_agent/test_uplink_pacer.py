"""The token bucket: what leaves is taken from it, new microbatches wait for it, and no run stands still for it."""

from __future__ import annotations

import itertools
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.edge_agent.uplink_pacer import LONGEST_HOLD_S, UplinkPacer

RATE = 1_000.0


def test_what_was_saved_up_goes_at_once_and_the_rest_at_the_rate() -> None:
    pacer = UplinkPacer(RATE, 0.0)
    assert pacer.may_send(0.0)
    pacer.count(3_000, 0.0)  # a second's worth was there
    assert not pacer.may_send(0.0)
    assert pacer.opens_at() == pytest.approx(2.0)
    pacer.count(3_000, 1.9)
    assert not pacer.may_send(1.9)
    pacer.count(3_000, 2.0)
    assert pacer.may_send(2.0)
    assert pacer.opens_at() is None


def test_waiting_is_counted_while_a_microbatch_waits_and_no_longer() -> None:
    pacer = UplinkPacer(RATE, 0.0)
    pacer.count(5_000, 0.0)
    assert not pacer.may_send(0.0)
    assert not pacer.may_send(1.0)
    assert pacer.paced_s == pytest.approx(1.0)
    pacer.stop_waiting(1.5)
    assert pacer.paced_s == pytest.approx(1.5)
    assert pacer.opens_at() is None
    pacer.count(5_000, 3.0)
    assert not pacer.may_send(3.0)
    pacer.count(5_000, 4.0)
    assert pacer.may_send(4.0)
    assert pacer.paced_s == pytest.approx(2.5)
    assert pacer.may_send(9.0)
    assert pacer.paced_s == pytest.approx(2.5)


def test_a_pause_saves_up_no_more_than_a_second() -> None:
    pacer = UplinkPacer(RATE, 0.0)
    pacer.count(0, 1_000.0)
    pacer.count(2_000, 1_000.0)
    assert not pacer.may_send(1_000.0)
    assert pacer.opens_at() == pytest.approx(1_001.0)


def test_a_limit_that_other_messages_take_alone_lets_microbatches_by_seldom_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pacer, gone_at = UplinkPacer(RATE, 0.0), []
    with caplog.at_level(logging.WARNING):
        for second in range(1, 100):
            pacer.count(second * 2_000, float(second))  # reports alone take twice the limit
            if pacer.may_send(float(second)):
                gone_at.append(second)
    assert gone_at[0] <= LONGEST_HOLD_S + 2
    assert len(gone_at) >= 3
    assert all(later - before >= LONGEST_HOLD_S for before, later in itertools.pairwise(gone_at))
    assert len(caplog.records) == 1
    assert "alone take all of 8 kbit/s" in caplog.text


@given(
    sizes=st.lists(st.integers(1, 5_000), min_size=1, max_size=60),
    others=st.lists(st.integers(0, 300), min_size=60, max_size=60),
    step_s=st.floats(0.01, 3.0),
)
def test_in_any_time_no_more_leaves_than_the_rate_a_burst_and_a_message(
    sizes: list[int], others: list[int], step_s: float
) -> None:
    pacer, now, sent = UplinkPacer(RATE, 0.0), 0.0, 0
    history: list[tuple[float, int]] = [(0.0, 0)]
    for size, other in zip(sizes, others, strict=False):
        pacer.count(sent, now)
        while not pacer.may_send(now):
            opens_at = pacer.opens_at()
            assert opens_at is not None
            assert opens_at > now, "time goes on"
            now = opens_at
            pacer.count(sent, now)
        sent += size
        pacer.count(sent, now)
        history.append((now, sent))
        now += step_s
        sent += other
        history.append((now, sent))
    largest, small = max(sizes), max(others)
    for index, (start_s, before) in enumerate(history):
        for end_s, after in history[index:]:
            assert after - before <= RATE * (end_s - start_s) + RATE + largest + small + 2
