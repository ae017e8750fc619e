"""Numbers as people read them: decimal units (1 kB is 1,000 B), few digits, the unit after a space."""

from __future__ import annotations

import math

from cutlayer.broker.task_metrics import Metric

__all__ = ["bytes_text", "count_text", "duration_text", "latency_text", "metric_text", "percent_text", "ratio_text"]

NOT_KNOWN = "-"

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def bytes_text(num_bytes: float | None) -> str:
    """Return a number of bytes, such as `12.3 MB`."""
    if num_bytes is None:
        return NOT_KNOWN
    value = float(num_bytes)
    for unit in _BYTE_UNITS[:-1]:
        # 999.96 kB would be written as 1000.0 kB.
        if abs(value) < (999.5 if unit == "B" else 999.95):
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} {_BYTE_UNITS[-1]}"


def latency_text(seconds: float | None) -> str:
    """Return a short time, such as `12.5 ms` or `1.20 s`."""
    if seconds is None:
        return NOT_KNOWN
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        return f"{milliseconds:.0f} ms" if milliseconds >= 99.95 else f"{milliseconds:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"


def duration_text(seconds: float | None) -> str:
    """Return a long time, such as `48.2 s`, `2 min 05 s` or `1 h 02 min`."""
    if seconds is None:
        return NOT_KNOWN
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent_text(share: float | None) -> str:
    """Return a share of one, such as `91.4 %`."""
    return NOT_KNOWN if share is None else f"{share * 100:.1f} %"


def metric_text(metric: Metric, value: float | None) -> str:
    """Return a value of a task's metric in four digits with its unit, such as `4.312 years`; a share in percent."""
    if value is None:
        return NOT_KNOWN
    if metric.is_share:
        return percent_text(value)
    digits = 3 - math.floor(math.log10(abs(value))) if value else 3
    return f"{value:,.{min(max(digits, 0), 6)}f} {metric.unit}".rstrip()


def ratio_text(numerator: float, denominator: float) -> str:
    """Return a quotient, such as `3.8x`."""
    if not denominator:
        return NOT_KNOWN
    quotient = numerator / denominator
    return f"{quotient:.1f}x" if quotient < 99.95 else f"{quotient:,.0f}x"


def count_text(count: int | None) -> str:
    """Return a count with thousands apart, such as `12,345`."""
    return NOT_KNOWN if count is None else f"{count:,}"
