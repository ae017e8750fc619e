"""Reads a data rate as people write it: `5mbit`, `600kbit`, `80kB`, `1.5MB`."""

from __future__ import annotations

import re

from cutlayer.broker.errors import SettingsError

__all__ = ["MIN_BYTES_PER_S", "RATE_FORMS", "parse_rate", "rate_text"]

RATE_FORMS = "600kbit, 5mbit or 1gbit (bits a second), 80kB or 1.5MB (bytes a second)"
MIN_BYTES_PER_S = 1_000.0
"""8 kbit/s: below that an agent's reports, a kilobyte or two each second, leave no room for its microbatches."""

_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+?)(?:/s|ps)?")


def parse_rate(text: str, *, name: str) -> float:
    """Return a rate in bytes a second.

    Units are decimal. Case matters where it tells bits from bytes: `mb` could be either, and is refused.

    Args:
        text: The rate; a `/s` or `ps` behind the unit changes nothing.
        name: What it is for, for the error.

    Raises:
        SettingsError: When it is no rate, or too low to train with.
    """
    match = _RATE.fullmatch(text.strip())
    number, unit = match.groups() if match else ("", "")
    if unit in _BYTES:
        bytes_per_s = float(number) * _BYTES[unit]
    elif unit.lower() in _BITS:
        bytes_per_s = float(number) * _BITS[unit.lower()] / 8
    else:
        raise SettingsError(f"{name} {text!r} is no rate", f"write it as {RATE_FORMS}")
    if bytes_per_s < MIN_BYTES_PER_S:
        raise SettingsError(
            f"{name} {text!r} is below {MIN_BYTES_PER_S * 8 / 1e3:g}kbit, which an agent's reports take alone",
            "raise it, or leave it out",
        )
    return bytes_per_s


def rate_text(bytes_per_s: float) -> str:
    """Return a rate for people, in bits a second."""
    bits = bytes_per_s * 8
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits >= size:
            return f"{bits / size:.3g} {unit}"
    return f"{bits:.3g} bit/s"
