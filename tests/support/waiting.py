"""Waiting for what other threads and processes do: long limits, that only a failing test reaches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

__all__ = ["LIMIT_S", "ends", "until"]

LIMIT_S = 120.0
"""Longer than a loaded machine lets a process stand still."""
EVERY_S = 0.02


def until(satisfied: Callable[[], object], what: str, limit_s: float = LIMIT_S, every_s: float = EVERY_S) -> None:
    """Wait until a condition holds, or fail."""
    end_s = time.monotonic() + limit_s
    while not satisfied():
        if time.monotonic() > end_s:
            pytest.fail(f"no {what} within {limit_s:g} s")
        time.sleep(every_s)


def ends(action: Callable[[], object], limit_s: float = LIMIT_S) -> bool:
    """Tell whether a call comes to its end, where a wrong one would wait for far longer than the limit.

    It runs in a thread of its own, so that one that does not end fails its test and no more.
    """
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(limit_s)
    return not thread.is_alive()
