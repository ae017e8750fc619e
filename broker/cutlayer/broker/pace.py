"""Who is slow: how long agents take from the outputs to their gradients, each measured by the fastest of the others.

In asynchronous windows nobody has to wait for a slow agent, yet without knowing who is slow everybody does: the ones
whose microbatches went forward in one group with its, and the ones who wait for a window that it might still join.
"""

from __future__ import annotations

import bisect

__all__ = ["Pace"]

SLOW_RATIO = 4.0
"""Times the fast ones' time that makes an agent slow. One that is not slow holds a window up by no more than that."""
FAST_SHARE = 0.25
"""The fast ones are this share of the agents, at least one: several slow agents do not become the measure."""
WEIGHT = 0.5
"""Of the newest time, so that an agent which has recovered is one of the others again after a few steps."""


class Pace:
    """How long each agent takes for its gradients.

    Args:
        least_s: Seconds that are not slow in any case: differences below this are the network's and the machine's.
    """

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self._usual_s: dict[str, float] = {}
        self._sorted_s: list[float] = []

    def __len__(self) -> int:
        return len(self._usual_s)

    @property
    def slow_after_s(self) -> float:
        """Seconds for its gradients from which on an agent is slow."""
        if not self._sorted_s:
            return float("inf")
        fast_s = self._sorted_s[int((len(self._sorted_s) - 1) * FAST_SHARE)]
        return max(SLOW_RATIO * fast_s, self._least_s)

    def is_slow(self, agent: str) -> bool:
        """Return whether an agent is; one that has never answered is not."""
        usual_s = self._usual_s.get(agent)
        return usual_s is not None and usual_s > self.slow_after_s

    def took(self, agent: str, seconds: float) -> None:
        """Take notice that an agent's gradients have come so long after its outputs."""
        before_s = self._usual_s.get(agent, seconds)
        self._set(agent, before_s + WEIGHT * (seconds - before_s))

    def takes_at_least(self, agent: str, seconds: float) -> None:
        """Take notice that they have not come for so long, and nobody waits for them any more."""
        self._set(agent, max(self._usual_s.get(agent, 0.0), seconds))

    def forget(self, agent: str) -> None:
        """Forget an agent that is gone."""
        usual_s = self._usual_s.pop(agent, None)
        if usual_s is not None:
            del self._sorted_s[bisect.bisect_left(self._sorted_s, usual_s)]

    def _set(self, agent: str, seconds: float) -> None:
        self.forget(agent)
        self._usual_s[agent] = seconds
        bisect.insort(self._sorted_s, seconds)
