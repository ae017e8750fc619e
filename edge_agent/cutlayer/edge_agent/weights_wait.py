"""Which weights of its tokenizers an agent has, and when it waits for newer ones before it tokenizes anything.

It waits for the first ones of a run, which follow the lease; and in synchronous mode, which is reproducible, for those
that a commit is known to bring. They may be lost: it then asks, and after some asks goes on with what it has.
"""

from __future__ import annotations

from cutlayer.broker.manifest import Manifest

__all__ = ["MAX_ASKS", "WeightsWait"]

MAX_ASKS = 8


class WeightsWait:
    """The weights of one agent.

    Args:
        manifest: The run.
        wait_s: How long they are waited for before a worker is asked.

    Attributes:
        version: Version of the weights that the agent has; -1 for the run's file.
    """

    def __init__(self, manifest: Manifest, wait_s: float) -> None:
        self.version = -1
        # None come where all tokenizers are the sites' own.
        self._is_trained = manifest.tokenizers.mode == "trainable" and bool(manifest.parameter_shapes())
        self._is_synchronous = manifest.window.mode == "synchronous"
        self._every_windows = manifest.tokenizers.every_windows
        self._wait_s = wait_s
        self._lease: int | None = None
        self._wanted = -1
        self._num_asks = 0
        self._ask_at: float | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing is to be tokenized now."""
        return self._ask_at is not None

    @property
    def next_ask(self) -> float | None:
        """When to ask for them; None while none are waited for."""
        return self._ask_at

    def leased(self, now: float) -> None:
        """Take notice of a lease: weights follow it."""
        self._want(0, now)

    def committed(self, window: int, now: float) -> None:
        """Take notice of a window that has a step of this agent."""
        if self._is_synchronous and (window + 1) % self._every_windows == 0:
            self._want(window + 1, now)

    def take(self, lease: int, version: int) -> bool:
        """Return whether weights are newer than what there is; they count as taken then.

        A worker that has gone back to a checkpoint has weights of a lower version, under another lease.
        """
        if lease == self._lease and version <= self.version:
            return False
        if lease != self._lease:
            self._wanted = version
        self._lease, self.version = lease, version
        if version >= self._wanted:
            self._ask_at = None
        return True

    def asks(self, now: float) -> bool:
        """Return whether to ask now; after the last time, wait no longer."""
        if self._ask_at is None or now < self._ask_at:
            return False
        if self._num_asks == MAX_ASKS:
            self._ask_at = None
            return False
        self._num_asks += 1
        self._ask_at = now + self._wait_s
        return True

    def _want(self, version: int, now: float) -> None:
        if self._is_trained and version > max(self.version, self._wanted):
            self._wanted, self._num_asks = version, 0
            self._ask_at = now + self._wait_s
