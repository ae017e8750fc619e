"""Tells how long an agent's link is busy with what the agent sends: its rate, and not its delay, makes a codec pay.

A link keeps the order, so how much was handed over, and how much of it is still under way, tell when a message has
left. That takes the link's delay, and for each byte that was under way with it the link's time for a byte:

    time under way = delay + bytes under way x time of a byte

Both come from a line through the last messages (least squares, older ones weighing less), whose sizes differ: a
gradient takes some hundred bytes, activations take many thousand. A long line or a jittery one so has no slope, and
no part in what is counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["LinkMeter"]

FORGETS = 0.95
"""Weight of a message against the next: some twenty count, ten microbatches and their gradients."""
LEAST_SPREAD_BYTES = 64.0
"""Sizes that differ less (standard deviation) tell nothing of a byte's time."""
LEAST_WEIGHT = 6.0
"""Of fewer messages nothing is concluded."""
LOOKS = 16
"""A message under way is looked for again after a part of the time that it has taken: few looks on a slow link."""
SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.01, 0.25


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A message, or several that were handed over at once.

    Attributes:
        out_at_bytes: It has left once so many bytes have.
        num_bytes: Its own.
        ahead_bytes: These and all that was under way before them.
        handed_at: Seconds.
    """

    out_at_bytes: int
    num_bytes: int
    ahead_bytes: int
    handed_at: float


class LinkMeter:
    """Counts the time that a link takes for bytes.

    Attributes:
        busy_s: Seconds so far.
    """

    def __init__(self) -> None:
        self.busy_s = 0.0
        self._handed_bytes = 0
        self._under_way: deque[_UnderWay] = deque()
        self._looked_from = 0.0
        # Sums of weights, bytes, seconds, squares of bytes, and bytes times seconds.
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)

    @property
    def byte_s(self) -> float:
        """Seconds that a byte takes, as far as known; 0 where it makes no difference."""
        weight, sum_x, sum_y, sum_xx, sum_xy = self._sums
        spread = weight * sum_xx - sum_x**2
        if weight < LEAST_WEIGHT or spread <= (weight * LEAST_SPREAD_BYTES) ** 2:
            return 0.0
        return max((weight * sum_xy - sum_x * sum_y) / spread, 0.0)

    def count(self, handed_bytes: int, pending_bytes: int, now: float) -> None:
        """Take notice of what was handed to the transport so far, and what of it is still under way.

        Args:
            handed_bytes: `Courier.handed_bytes`.
            pending_bytes: `Transport.pending_bytes`.
            now: Seconds.
        """
        if handed_bytes > self._handed_bytes:
            if not self._under_way:
                self._looked_from = now
            num_bytes = handed_bytes - self._handed_bytes
            self._under_way.append(_UnderWay(handed_bytes, num_bytes, max(pending_bytes, num_bytes), now))
            self._handed_bytes = handed_bytes
        last, left_bytes = None, 0
        while self._under_way and handed_bytes - pending_bytes >= self._under_way[0].out_at_bytes:
            last = self._under_way.popleft()
            left_bytes += last.num_bytes
        if last is None:
            return
        # Of those that are found out together, when the last one left is known best.
        took_s = now - last.handed_at
        x, y = float(last.ahead_bytes), took_s
        self._sums = tuple(  # type: ignore[assignment]  # five, as before
            FORGETS * old + new for old, new in zip(self._sums, (1.0, x, y, x * x, x * y), strict=True)
        )
        self.busy_s += min(left_bytes * self.byte_s, now - self._looked_from)
        self._looked_from = now

    def next_look(self, now: float) -> float | None:
        """Return when to look again whether something has left; None where nothing is under way."""
        if not self._under_way:
            return None
        waited_s = now - max(self._under_way[0].handed_at, self._looked_from)
        return now + min(max(waited_s / LOOKS, SHORTEST_LOOK_S), LONGEST_LOOK_S)
