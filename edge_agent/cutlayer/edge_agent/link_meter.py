"""Tells how long an agent's link is busy with what the agent sends: its rate, and not its delay, makes a codec pay.

Links keep the order, so how much was handed over, and how much of it is still under way, tell when each message has
left. From idle, a message takes the link's delay and its own bytes' time; behind another, its own bytes' time alone.
The delay is the least that any message from idle has taken lately (gradients and reports are small), and is not
counted.
"""

from __future__ import annotations

from collections import deque

__all__ = ["MIN_BUSY_S", "LinkMeter"]

MIN_BUSY_S = 0.02
"""What leaves within this beyond the delay is not counted: so finely nobody looks, and no training waits for that."""
NUM_DELAYS = 64
"""Messages from idle that the delay is taken from."""


class LinkMeter:
    """Counts the time that a link takes for bytes.

    Attributes:
        busy_s: Seconds so far.
    """

    def __init__(self) -> None:
        self.busy_s = 0.0
        self._handed_bytes = 0
        self._under_way: deque[tuple[int, float]] = deque()
        self._last_out_at = float("-inf")
        self._delays_s: deque[float] = deque(maxlen=NUM_DELAYS)

    def count(self, handed_bytes: int, pending_bytes: int, now: float) -> None:
        """Take notice of what was handed to the transport so far, and what of it is still under way.

        Args:
            handed_bytes: `Courier.handed_bytes`.
            pending_bytes: `Transport.pending_bytes`.
            now: Seconds.
        """
        if handed_bytes > self._handed_bytes:
            self._under_way.append((handed_bytes, now))
            self._handed_bytes = handed_bytes
        out_bytes = handed_bytes - pending_bytes
        if not self._under_way or out_bytes < self._under_way[0][0]:
            return
        _, handed_at = self._under_way[0]
        while self._under_way and out_bytes >= self._under_way[0][0]:
            self._under_way.popleft()
        if handed_at >= self._last_out_at:
            took_s = now - handed_at
            self._delays_s.append(took_s)
            took_s -= min(self._delays_s)
        else:
            took_s = now - self._last_out_at
        self._last_out_at = now
        if took_s > MIN_BUSY_S:
            self.busy_s += took_s

    def next_look(self, now: float) -> float | None:
        """Return when to look again whether something has left; None where nothing is under way."""
        if not self._under_way:
            return None
        # A sixteenth of the time that it has taken already: exact enough, and few looks on a slow link.
        since = max(self._under_way[0][1], self._last_out_at)
        return now + min(max((now - since) / 16, MIN_BUSY_S / 2), 0.25)
