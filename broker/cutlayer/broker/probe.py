"""Probes: a worker proves to a site that its words arrive and that answers come back, and tells its own time.

A Probe needs no lease and belongs to no session: it comes on the agent's inbox at a worker and is answered on a topic
that a running agent does not listen to. No I/O here: messages and times in, actions out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cutlayer.broker.actions import Publish, Refused, WorkerAction
from cutlayer.broker.messages import Probe, ProbeAnswer
from cutlayer.broker.topics import AgentTopics, WorkerTopics, agent_of

__all__ = ["ANSWERS_PER_S", "ClockDifference", "ProbeDesk", "RoundTrip", "clock_difference", "probe_answers"]

ANSWERS_PER_S = 20.0
"""Answers a second that a worker gives in the long run, to all agents together: 2 ms of its time."""
MOST_AT_ONCE = 40.0


def probe_answers(agent: str, nonce: int) -> str:
    """Return where the answers to one probe come: below the agent's `down/`, yet not matched by its own `down/+`."""
    return f"{AgentTopics(agent).down_all.removesuffix('+')}probe/{nonce:x}"


class ProbeDesk:
    """Answers probes at a worker, so many a second at the most.

    Args:
        worker: The worker's name.
    """

    def __init__(self, worker: str) -> None:
        self._topics = WorkerTopics(worker)
        self._left = MOST_AT_ONCE
        self._refilled_at: float | None = None

    def receive(self, topic: str, probe: Probe, now: float, epoch_s: float) -> list[WorkerAction]:
        """Take a probe; return its answer, or nothing where there were too many.

        Args:
            topic: Where it came from.
            probe: The message.
            now: Seconds of a monotonic clock.
            epoch_s: Seconds since the epoch, by this machine's clock.
        """
        agent = agent_of(topic)
        if agent is None or topic != self._topics.inbox_of(agent):
            return [Refused("unexpected", f"a Probe on {topic}")]
        if self._refilled_at is not None:
            self._left = min(self._left + ANSWERS_PER_S * (now - self._refilled_at), MOST_AT_ONCE)
        self._refilled_at = now
        if self._left < 1.0:
            return []
        self._left -= 1.0
        return [Publish(probe_answers(agent, probe.nonce), self._answer(probe, epoch_s))]

    def _answer(self, probe: Probe, epoch_s: float) -> ProbeAnswer:
        # A machine whose clock says a time before 1970 still has to be told so.
        return ProbeAnswer(self._topics.name, probe.nonce, probe.sent_at, max(epoch_s, 0.0))


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """One probe and its answer.

    Attributes:
        sent_at: When the probe left, in seconds since the epoch by the asker's clock.
        answered_at: When it was answered, by the worker's clock.
        round_trip_s: Seconds from the one to the receipt of the answer, by the asker's monotonic clock.
    """

    sent_at: float
    answered_at: float
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class ClockDifference:
    """How far a worker's clock is ahead of ours.

    Attributes:
        ahead_s: Seconds; negative where it is behind.
        uncertainty_s: The truth is at most so far from it.
    """

    ahead_s: float
    uncertainty_s: float


def clock_difference(round_trips: Sequence[RoundTrip]) -> ClockDifference:
    """Estimate how far a worker's clock is ahead, as NTP does (RFC 5905, sections 8 and 10).

    The worker's time is compared with the middle of the round trip. Where the two ways take unequal times this is
    wrong by half the round trip at the most, so the shortest one tells.

    Args:
        round_trips: At least one.

    Raises:
        ValueError: When there is none.
    """
    shortest = min(round_trips, key=lambda trip: trip.round_trip_s)
    half_s = shortest.round_trip_s / 2
    return ClockDifference(shortest.answered_at - (shortest.sent_at + half_s), half_s)
