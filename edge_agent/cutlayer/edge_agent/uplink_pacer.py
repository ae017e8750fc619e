"""Keeps an agent's uplink below a limit: a token bucket that new microbatches wait for.

All bytes that leave are taken from the bucket, but only new microbatches wait for it: gradients, repetitions and
reports go at once, so that no window, lease or deadline waits for a limit that this agent has set itself. What they
take, the next microbatch makes good. So in any time T an agent sends no more than

    rate x T + one second's worth + its largest microbatch + what goes at once after the last microbatch of that time

Time and counts come in, decisions go out: no clock is read here.
"""

from __future__ import annotations

import logging

from cutlayer.edge_agent.rate_text import rate_text

__all__ = ["BURST_S", "LONGEST_HOLD_S", "UplinkPacer"]

log = logging.getLogger(__name__)

BURST_S = 1.0
"""What was not used is kept for so long: a microbatch after a pause goes at once."""
LONGEST_HOLD_S = 30.0
"""Where reports and gradients alone take the whole limit, a microbatch goes after so long all the same: a run that
stands still is worse than a limit that is passed. It takes a limit below some kilobytes a second."""


class UplinkPacer:
    """Says when the next new microbatch may go.

    Args:
        bytes_per_s: The limit.
        now: Seconds.

    Attributes:
        paced_s: Seconds so far in which a microbatch was ready to be made, and waited for the limit.
    """

    def __init__(self, bytes_per_s: float, now: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.paced_s = 0.0
        self._tokens = self._burst = bytes_per_s * BURST_S
        self._counted_at = now
        self._sent_bytes = 0
        self._held_since: float | None = None
        self._longest_hold_s = LONGEST_HOLD_S
        self._paced_to = now
        self._has_warned = False

    def count(self, sent_bytes: int, now: float) -> None:
        """Take notice of what has left so far.

        Args:
            sent_bytes: All bytes since the start.
            now: Seconds.
        """
        self._tokens = min(self._tokens + (now - self._counted_at) * self.bytes_per_s, self._burst)
        self._tokens -= sent_bytes - self._sent_bytes
        self._counted_at, self._sent_bytes = now, sent_bytes

    def may_send(self, now: float) -> bool:
        """Return whether a new microbatch may go now; where it may not, the time from now on counts as waiting."""
        if self._held_since is not None:
            self.paced_s += now - self._paced_to
        self._paced_to = now
        if self._tokens > -1.0:  # a part of a byte is nothing to wait for
            self._held_since = None
            return True
        if self._held_since is None:
            self._held_since = now
            # The debt of a large microbatch takes its time; beyond twice that, something else takes the rate.
            self._longest_hold_s = max(LONGEST_HOLD_S, 2.0 * self._debt_s())
        if now < self._held_since + self._longest_hold_s:
            return False
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "reports, gradients and repetitions alone take all of %s; microbatches go every %g s all the same",
                rate_text(self.bytes_per_s),
                self._longest_hold_s,
            )
        self._held_since = None
        self._tokens = 0.0  # or the debt, which nothing repays, would hold the next one in the same way at once
        return True

    def stop_waiting(self, now: float) -> None:
        """Take notice that no microbatch is ready any more: nothing waits for the limit."""
        if self._held_since is not None:
            self.paced_s += now - self._paced_to
            self._held_since = None

    def opens_at(self) -> float | None:
        """Return when the microbatch that waits may go; None where none does."""
        if self._held_since is None:
            return None
        # At least the time of a byte, or a rounding error would have a driver come back at once for ever.
        opens_at = self._counted_at + max(self._debt_s(), 1.0 / self.bytes_per_s)
        return min(opens_at, self._held_since + self._longest_hold_s)

    def _debt_s(self) -> float:
        return max(-self._tokens, 0.0) / self.bytes_per_s
