"""What is counted: bytes by kind and codec, and times as a histogram that merges."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.broker.messages import (
    MAX_TRAFFIC,
    Direction,
    EncodedTensor,
    Message,
    Outputs,
    Telemetry,
    parse,
    serialize,
)
from cutlayer.broker.process_usage import cpu_seconds, peak_rss_bytes
from cutlayer.broker.telemetry import LogHistogram, TrafficMeter, message_codec, message_raw_bytes
from support.message_values import ANY_MESSAGE, EXAMPLES, TELEMETRY


def histogram(durations: list[float]) -> LogHistogram:
    """Return a histogram of durations."""
    counted = LogHistogram()
    for seconds in durations:
        counted.add(seconds)
    return counted


DURATIONS = st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=50)


@given(DURATIONS, st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_a_quantile_is_within_half_a_bucket(durations: list[float], share: float) -> None:
    exact = sorted(durations)[max(math.ceil(share * len(durations)) - 1, 0)]
    quantile = histogram(durations).quantile(share)
    assert quantile is not None
    assert exact / 1.026 <= quantile <= exact * 1.026


@given(DURATIONS, DURATIONS)
def test_merging_is_the_same_as_counting_together(first: list[float], second: list[float]) -> None:
    merged = histogram(first)
    merged.merge(histogram(second))
    assert merged.counts() == histogram(first + second).counts()
    assert len(merged) == len(first) + len(second)


@given(DURATIONS)
def test_a_histogram_travels_as_its_counts(durations: list[float]) -> None:
    counted = histogram(durations)
    assert LogHistogram(counted.counts()).counts() == counted.counts()
    assert all(0 <= bucket <= 4_096 for bucket, _ in counted.counts()), "the message's limit"


def test_an_empty_histogram_has_no_quantile() -> None:
    assert LogHistogram().quantile(0.5) is None
    assert len(LogHistogram()) == 0


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9, 1e-4])
def test_very_short_times_are_the_first_bucket(seconds: float) -> None:
    assert histogram([seconds]).quantile(0.5) == 1e-4


def test_very_long_times_are_the_last_bucket() -> None:
    assert histogram([1e30]).counts() == histogram([1e20]).counts()


@given(st.lists(st.tuples(st.integers(0, 4_096), st.integers(0, 1 << 53)), max_size=5))
def test_a_histogram_from_a_peer_has_a_finite_quantile_or_none(counts: list[tuple[int, int]]) -> None:
    quantile = LogHistogram(counts).quantile(0.95)
    assert quantile is None or math.isfinite(quantile)


def test_traffic_is_summed_by_direction_kind_and_codec() -> None:
    meter = TrafficMeter()
    for _ in range(2):
        meter.add(Direction.UP, EXAMPLES["Activations"], 100, 120)
    meter.add(Direction.DOWN, EXAMPLES["Outputs"], 50, 60)
    meter.add(Direction.DOWN, EXAMPLES["Welcome"], 5, 6)
    rows = {(row.direction, row.kind, row.codec): row for row in meter.snapshot()}
    assert set(rows) == {
        (Direction.UP, "Activations", "int8+zstd"),
        (Direction.DOWN, "Outputs", "fp16"),
        (Direction.DOWN, "Welcome", ""),
    }
    sent = rows[Direction.UP, "Activations", "int8+zstd"]
    assert (sent.messages, sent.payload_bytes, sent.wire_bytes) == (2, 200, 240)
    assert sent.raw_bytes == 2 * 2 * (2 * 3 * 4) * 4


@given(ANY_MESSAGE)
def test_every_message_can_be_counted_and_the_count_sent(message: Message) -> None:
    meter = TrafficMeter()
    meter.add(Direction.UP, message, 1, 2)
    row = meter.snapshot()[0]
    assert row.raw_bytes == message_raw_bytes(message)
    assert row.codec == message_codec(message)
    telemetry = Telemetry(**{name: getattr(TELEMETRY, name) for name in TELEMETRY.__slots__} | {"traffic": (row,)})
    assert parse(serialize(telemetry)) == telemetry


def test_rows_never_become_more_than_a_message_may_carry() -> None:
    """Codec names come from peers: a thousand of them must not end an agent at its next report."""
    meter, rng = TrafficMeter(), random.Random(1)
    kinds = list(EXAMPLES.values())
    for number in range(1_000):
        outputs = Outputs(1, number, EXAMPLES["Resend"].mode, 1, 0.0, EncodedTensor(f"c{number}", (1,), b""))  # type: ignore[union-attr]
        meter.add(rng.choice(list(Direction)), outputs, 1, 1)
        meter.add(rng.choice(list(Direction)), rng.choice(kinds), 1, 1)
    rows = meter.snapshot()
    assert len(rows) <= MAX_TRAFFIC
    assert sum(row.messages for row in rows) == 2_000
    assert any(row.codec == "other" for row in rows)


def test_this_process_uses_time_and_memory() -> None:
    before = cpu_seconds()
    sum(range(1_000_000))
    assert cpu_seconds() > before
    assert 10 << 20 < peak_rss_bytes() < 64 << 30
