"""Keeps the activations that have come, by agent and sample number, so that they need not come again.

Two uses. With frozen tokenizers a sample's activations never change: an agent sends them once, and from the second
epoch on only the sample's number. With trainable tokenizers the store holds each sample's last reconstruction, to which
the agent sends the change (AQ-SGD, arXiv 2206.01299, section 3), and how often it was sent.

A store may lose any sample at any time: the agent then sends it again, and nothing else happens. What it must never do
is give back something else than what was put.

What happens when a store is full: it declines what is new and keeps what it has. Each sample is read once an epoch in
random order, so "least recently used" would always throw away what is needed soonest: with room for 90 % of the samples
in cyclic order its hit rate is zero, while keeping the first 90 % gives 90 % hits, in any order. Only samples of agents
that have neither put nor got anything for `idle_s` make room, the longest idle agent's first, and of these no more than
are needed.

`MemoryActivationStore` here is the twin of `disk_store.DiskActivationStore`: for tests, simulations in virtual time,
and workers without a disk.

Axes: b samples, K tokens, D width.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cutlayer.server_worker.stored_sample import Fetched, StoredSample, assemble, require_sound, split_samples

__all__ = ["ActivationStore", "Fetched", "MemoryActivationStore"]


class ActivationStore(Protocol):
    """Activations by agent and sample number. One thread at a time uses it."""

    @property
    def id(self) -> str:
        """Names the store: at most 32 characters, random, made with it; the same at all workers that share it."""

    @property
    def stored_bytes(self) -> int:
        """What its samples take, in bytes, where they are kept."""

    @property
    def num_samples(self) -> int:
        """Samples in it, of all agents."""

    def put(
        self,
        agent: str,
        samples: NDArray[np.int64],
        tokens: Mapping[str, NDArray[np.float32]],
        *,
        positions: Mapping[str, NDArray[np.intp]] | None = None,
        visits: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.bool_]:
        """Keep a microbatch, each sample whole or not at all.

        A sample that was there is replaced, with all its modalities. One that is declined is gone: what was put before
        is not there either. Of a number that comes twice the last one counts.

        Args:
            agent: Whose samples.
            samples: (b,) their numbers, which mean something to the agent alone.
            tokens: (b, K, D) by modality, at least one; samples that are not finite are declined.
            positions: (b, K) by modality, where tokens were reduced or ragged; not negative.
            visits: (b,) kept beside the tokens; zeros if not given.

        Returns:
            (b,) whether each is kept.

        Raises:
            ValueError: The shapes or dtypes do not fit together.
        """

    def get(self, agent: str, samples: NDArray[np.int64], names: Sequence[str]) -> Fetched:
        """Return what was put, bit for bit.

        Where samples differ in their shapes, the commonest counts and the others are missing. Where only some have
        positions, the others get those of all tokens.

        Args:
            agent: Whose samples.
            samples: (b,) their numbers.
            names: The modalities that are wanted; a sample may have more.
        """

    def forget(self, agent: str) -> None:
        """Drop all samples of an agent."""

    def delete(self) -> None:
        """Drop everything, for good: the run has ended. Afterwards nothing is kept and all is missing."""

    def close(self) -> None:
        """Let go of the store, which stays for others and for later."""


@dataclass(slots=True)
class _Agent:
    touched_at: float
    samples: dict[int, StoredSample] = field(default_factory=dict)


class MemoryActivationStore:
    """A store in memory; workers in one process share the object itself.

    Args:
        max_bytes: Of its arrays; without limit if None.
        idle_s: An agent that was away for so long makes room for others.
        clock: Seconds.
    """

    def __init__(
        self,
        max_bytes: int | None = None,
        *,
        idle_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.stored_bytes = 0
        self._max_bytes = max_bytes
        self._idle_s = idle_s
        self._clock = clock
        self._agents: dict[str, _Agent] = {}
        self._is_deleted = False

    @property
    def num_samples(self) -> int:
        """Samples in it, of all agents."""
        return sum(len(agent.samples) for agent in self._agents.values())

    def put(
        self,
        agent: str,
        samples: NDArray[np.int64],
        tokens: Mapping[str, NDArray[np.float32]],
        *,
        positions: Mapping[str, NDArray[np.intp]] | None = None,
        visits: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.bool_]:
        """Keep a microbatch; see `ActivationStore.put`."""
        positions = positions or {}
        require_sound(samples, tokens, positions, visits)
        if self._is_deleted:
            return np.zeros(len(samples), bool)
        owner = self._agents.setdefault(agent, _Agent(0.0))
        owner.touched_at = self._clock()
        kept: dict[int, bool] = {}
        for number, sample in split_samples(samples, tokens, positions, visits):
            self._drop(owner, number)
            kept[number] = sample is not None and self._make_room(owner, sample.num_bytes)
            if sample is not None and kept[number]:
                owner.samples[number] = _copied(sample)
                self.stored_bytes += sample.num_bytes
        return np.array([kept[int(number)] for number in samples], bool)

    def get(self, agent: str, samples: NDArray[np.int64], names: Sequence[str]) -> Fetched:
        """Return what was put; see `ActivationStore.get`."""
        owner = self._agents.get(agent)
        if owner is None:
            return assemble([None] * len(samples), names)
        owner.touched_at = self._clock()
        return assemble([owner.samples.get(int(number)) for number in samples], names)

    def forget(self, agent: str) -> None:
        """Drop all samples of an agent."""
        if (owner := self._agents.pop(agent, None)) is not None:
            self.stored_bytes -= sum(sample.num_bytes for sample in owner.samples.values())

    def delete(self) -> None:
        """Drop everything, for good."""
        self._agents.clear()
        self.stored_bytes = 0
        self._is_deleted = True

    def close(self) -> None:
        """Do nothing: others may have the object."""

    def _drop(self, owner: _Agent, number: int) -> None:
        if (old := owner.samples.pop(number, None)) is not None:
            self.stored_bytes -= old.num_bytes

    def _make_room(self, owner: _Agent, num_bytes: int) -> bool:
        if self._max_bytes is None:
            return True
        if num_bytes > self._max_bytes:
            return False
        idle_since = owner.touched_at - self._idle_s
        idle = [agent for agent in self._agents.values() if agent is not owner and agent.touched_at <= idle_since]
        for agent in sorted(idle, key=lambda agent: agent.touched_at):
            while agent.samples and self.stored_bytes + num_bytes > self._max_bytes:
                self._drop(agent, next(iter(agent.samples)))
        return self.stored_bytes + num_bytes <= self._max_bytes


def _copied(sample: StoredSample) -> StoredSample:
    return StoredSample(
        {name: tokens_KD.copy() for name, tokens_KD in sample.tokens.items()},
        {name: positions_K.astype(np.intp) for name, positions_K in sample.positions.items()},
        sample.visits,
    )
