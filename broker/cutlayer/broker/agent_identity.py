"""One process an identity: the first one keeps it, and a second is told so and stops. Without I/O.

A process claims its topic with its retained state each time it connects. One that has the identity already answers
the claim, and a claim that is answered is given up:

    newcomer                                 the first process
      AgentState(online) ------------------->  established: its own claim has had CLAIM_S without an answer
      <------ AgentState(online, answers = the newcomer's incarnation)
      stops

Of two claims that are not established yet the smaller incarnation's, the earlier process, is the better: it answers
the other. The broker shows a claim only to those who have subscribed by then, so the later process of two claims again
when it sees the earlier one's. Nobody answers for a process that is dead, so one that was killed and started again
gets in at once. The state says offline only of a process that is gone: where a late will says so of a living one, or
of its predecessor, it says online again.
"""

from __future__ import annotations

from cutlayer.broker.actions import AgentAction, Fail, Publish
from cutlayer.broker.errors import IdentityTaken
from cutlayer.broker.messages import AgentState
from cutlayer.broker.topics import AgentTopics

__all__ = ["CLAIM_S", "SPEAK_EVERY_S", "IdentityClaim"]

CLAIM_S = 3.0
"""A claim that nobody has answered for so long stands."""
SPEAK_EVERY_S = 1.0
"""At most one state in so many seconds goes out in answer to others', whatever comes in."""


class IdentityClaim:
    """One process's claim to its agent's topic.

    Args:
        topics: The agent's topics.
        incarnation: Start of this process, in milliseconds since the epoch.
    """

    def __init__(self, topics: AgentTopics, incarnation: int) -> None:
        self._topics = topics
        self._incarnation = incarnation
        self._claimed_at: float | None = None
        self._may_speak_at = float("-inf")
        self._owed_answer: int | None = None
        self._is_over = False

    def connected(self, now: float) -> Publish:
        """Claim the identity: on the first connection and on each other, since another may have it by then."""
        self._claimed_at = now
        return self._state(0)

    def is_established(self, now: float) -> bool:
        """Return whether the claim of this connection stands."""
        return self._claimed_at is not None and now >= self._claimed_at + CLAIM_S

    def next_deadline(self) -> float | None:
        """Return the time at which `tick` has something to say, or None."""
        return None if self._owed_answer is None else self._may_speak_at

    def receive(self, state: AgentState, now: float) -> list[AgentAction]:
        """Take a state of this topic: one's own, a predecessor's will, or a second process's."""
        if self._is_over or self._claimed_at is None:
            return []
        if not state.online:
            return self._speak(0, now)
        if state.incarnation == self._incarnation:
            return []
        is_established = self.is_established(now)
        if state.answers == self._incarnation:
            if is_established:
                return []
            self._is_over = True
            return [Fail(IdentityTaken(self._topics.root))]
        if is_established or self._incarnation < state.incarnation:
            return self._speak(state.incarnation, now)
        self._claimed_at = now  # or the answer might come when this claim stands already
        return self._speak(0, now)

    def tick(self, now: float) -> list[AgentAction]:
        """Say what had to wait."""
        return [] if self._owed_answer is None else self._speak(self._owed_answer, now)

    def give_up(self) -> Publish:
        """Return the retained state of an agent that is gone; nothing contradicts it from here on."""
        self._is_over, self._owed_answer = True, None
        return Publish(self._topics.state, AgentState(online=False, incarnation=self._incarnation), retain=True)

    def _speak(self, answers: int, now: float) -> list[AgentAction]:
        if now < self._may_speak_at:
            self._owed_answer = answers or self._owed_answer or 0
            return []
        self._owed_answer = None
        self._may_speak_at = now + SPEAK_EVERY_S
        return [self._state(answers)]

    def _state(self, answers: int) -> Publish:
        return Publish(self._topics.state, AgentState(True, self._incarnation, answers), retain=True)
