"""Rates as people write them: decimal units, bits told from bytes, and errors that list the forms."""

from __future__ import annotations

import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.rate_text import parse_rate, rate_text


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("5mbit", 625_000),
        ("5Mbit/s", 625_000),
        ("600kbit", 75_000),
        ("600 kbit", 75_000),
        ("8000bit", 1_000),
        ("1gbit", 125_000_000),
        ("80kB", 80_000),
        ("80KB/s", 80_000),
        ("1.5MB", 1_500_000),
        ("2000B", 2_000),
        ("1GB", 1_000_000_000),
    ],
)
def test_a_rate_is_read_in_decimal_units(text: str, bytes_per_s: float) -> None:
    assert parse_rate(text, name="--max-uplink") == bytes_per_s


@pytest.mark.parametrize("text", ["", "5", "mbit", "5mb", "5mB", "5kb", "-5mbit", "5mbit5", "1e3kbit", "nanmbit"])
def test_what_is_no_rate_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(SettingsError, match="is no rate") as refused:
        parse_rate(text, name="--max-uplink")
    assert "600kbit" in str(refused.value)
    assert "1.5MB" in str(refused.value)


def test_a_rate_that_reports_take_alone_is_refused() -> None:
    with pytest.raises(SettingsError, match="below 8kbit"):
        parse_rate("7kbit", name="--max-uplink")


def test_rates_are_shown_in_bits_a_second() -> None:
    texts = [rate_text(size) for size in (625_000, 75_000, 125_000_000, 100)]
    assert texts == ["5 Mbit/s", "600 kbit/s", "1 Gbit/s", "800 bit/s"]
