from __future__ import annotations

import pytest

from cutlayer.broker.learning_rate import learning_rate_factor


def factor(progress: float | None, warmup_ratio: float = 0.2, min_lr_ratio: float = 0.1) -> float:
    return learning_rate_factor(progress, warmup_ratio=warmup_ratio, min_lr_ratio=min_lr_ratio)


def test_rate_rises_linearly_through_the_warmup() -> None:
    assert [factor(0.0), factor(0.05), factor(0.1)] == [0.0, 0.25, 0.5]


def test_rate_peaks_where_the_warmup_ends() -> None:
    assert factor(0.2) == 1.0


def test_rate_is_halfway_down_in_the_middle_of_the_cosine() -> None:
    assert factor(0.6) == pytest.approx(0.55)


def test_rate_ends_at_the_floor_and_stays_there() -> None:
    assert factor(1.0) == pytest.approx(0.1)
    assert factor(1.7) == factor(1.0)


def test_rate_starts_at_the_peak_without_a_warmup() -> None:
    assert factor(0.0, warmup_ratio=0.0) == 1.0


def test_rate_never_rises_after_the_warmup() -> None:
    rates = [factor(0.2 + 0.008 * step) for step in range(101)]
    assert rates == sorted(rates, reverse=True)


def test_a_run_without_an_end_keeps_the_peak() -> None:
    assert factor(None) == 1.0
