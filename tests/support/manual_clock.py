"""A clock that stands until a test moves it."""

from __future__ import annotations


class ManualClock:
    """Call it for the time in seconds; set `now_s` to move it.

    Args:
        now_s: Where it starts.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s
