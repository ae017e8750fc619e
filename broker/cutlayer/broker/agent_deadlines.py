"""How long an agent waits before it says something again, and what it learns from round trips."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Deadlines", "Patience"]

MAX_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the session waits before it sends again, in seconds, and how often before it turns elsewhere.

    Attributes:
        hello_s: For the answer to a Hello.
        step_s: For the next message of a step, at the least; slow round trips stretch it.
        longest_s: At the most, after doubling at each repetition.
        repeats_before_moving: Repetitions that a worker leaves unanswered, saying nothing else either, before it
            counts as silent and what it holds goes to another.
        claim_hello_s: From the first connection to the first Hello: a process that has the identity already answers
            meanwhile, and keeps its leases.
    """

    hello_s: float = 2.0
    step_s: float = 5.0
    longest_s: float = 60.0
    repeats_before_moving: int = 2
    claim_hello_s: float = 0.5


class Patience:
    """How long the next message of a step may take, from what the steps before took.

    Args:
        deadlines: The limits.
    """

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._round_trip_s: float | None = None
        self._server_s = 0.0

    @property
    def round_trip_s(self) -> float | None:
        """Mean of the last round trips, or None before the first."""
        return self._round_trip_s

    @property
    def longest_s(self) -> float:
        """The longest time that anything is waited for."""
        return max(self._deadlines.longest_s, self._deadlines.step_s)

    def wait_s(self, num_repeats: int) -> float:
        """Return how long to wait for the answer to a message that was repeated so often."""
        doublings = min(num_repeats, MAX_DOUBLINGS)
        usual_s = max(self._deadlines.step_s, 4.0 * (self._round_trip_s or 0.0), 1.5 * self._server_s)
        return min(usual_s * 2.0**doublings, self.longest_s)

    def measure(self, num_sent: int, round_trip_s: float, server_s: float) -> None:
        """Learn from a round trip, by Karn's rule (RFC 6298, section 3): a repeated message measures nothing.

        Nothing but what the worker itself has measured: or a worker that takes longer than the first deadline would
        be sent everything twice for ever.

        Args:
            num_sent: How often the activations were sent.
            round_trip_s: From the last sending to the outputs.
            server_s: What the worker says it took, and no more than it can have taken.
        """
        if num_sent > 1:
            self._server_s = server_s
            return
        self._server_s = 0.0
        before_s = round_trip_s if self._round_trip_s is None else self._round_trip_s
        self._round_trip_s = before_s + (round_trip_s - before_s) / 8
