"""A link's own pace, told from its delay by what the agent's messages take."""

from __future__ import annotations

import random

import pytest

from cutlayer.edge_agent.link_meter import LinkMeter


def carried(
    bytes_per_s: float, delay_s: float, *, jitter_s: float = 0.0, pause_s: float = 0.1, sizes: tuple[int, ...]
) -> tuple[LinkMeter, float]:
    """Carry messages over a link, each when the one before is there; return the meter, and the time of it all."""
    meter, now, handed = LinkMeter(), 0.0, 0
    rng = random.Random(0)
    for size in sizes:
        handed += size
        meter.count(handed, size, now)
        through_s = now + size / bytes_per_s + delay_s + rng.uniform(0.0, jitter_s)
        while now < through_s:
            look_at = meter.next_look(now)
            assert look_at is not None
            assert look_at > now
            now = look_at
            meter.count(handed, size if now < through_s else 0, now)
        assert meter.next_look(now) is None
        now += pause_s
    return meter, now


def test_a_slow_link_is_busy_for_the_time_of_its_bytes() -> None:
    meter, _ = carried(10_000.0, 0.05, sizes=(20_000, 400) * 20)
    assert meter.byte_s == pytest.approx(1e-4, rel=0.1)
    assert meter.busy_s == pytest.approx(20 * 20_400 * 1e-4, rel=0.2)  # the first few are not counted


def test_a_long_link_is_not_a_slow_one() -> None:
    meter, elapsed_s = carried(10e6, 0.5, sizes=(20_000, 400) * 20)
    assert meter.busy_s < 0.05 * elapsed_s


def test_jitter_is_no_rate() -> None:
    meter, elapsed_s = carried(10e6, 0.02, jitter_s=0.1, sizes=(20_000, 400) * 20)
    assert meter.busy_s < 0.15 * elapsed_s


def test_messages_of_one_size_tell_nothing() -> None:
    meter, _ = carried(10_000.0, 0.0, sizes=(5_000,) * 30)
    assert meter.byte_s == 0.0
    assert meter.busy_s == 0.0


def test_a_link_that_turns_slow_is_seen_within_a_dozen_messages() -> None:
    meter, now, handed = LinkMeter(), 0.0, 0
    for index in range(60):
        size = 400 if index % 2 else 20_000
        handed += size
        meter.count(handed, size, now)
        now += 0.05 + (size / 10_000 if index >= 40 else 0.0)
        meter.count(handed, 0, now)
        if index == 39:
            assert meter.byte_s == pytest.approx(0.0, abs=1e-9)
        if index == 51:
            assert meter.byte_s > 0.3e-4
    assert meter.byte_s == pytest.approx(1e-4, rel=0.6)


def test_messages_behind_one_another_count_their_bytes_once() -> None:
    meter, handed = LinkMeter(), 0
    out_at: list[float] = []
    for index in range(40):  # two at a time: activations, and a gradient behind them
        start_s = max(out_at[-1], float(index)) if out_at else 0.0
        meter.count(handed := handed + 5_000, 5_000, start_s)
        meter.count(handed := handed + 500, 5_500, start_s)
        meter.count(handed, 500, start_s + 0.5)
        meter.count(handed, 0, start_s + 0.55)
        out_at.append(start_s + 0.55)
    assert meter.byte_s == pytest.approx(1e-4, rel=0.1)
    assert meter.busy_s == pytest.approx(40 * 0.55, rel=0.15)
