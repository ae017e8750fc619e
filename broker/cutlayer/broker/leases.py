"""The worker's table of leases: who trains here, with how many credits, and how far each agent has come."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from cutlayer.broker.manifest import CodecNames, Manifest
from cutlayer.broker.messages import Hello, NegotiatedCodecs

__all__ = ["Lease", "LeaseTable", "negotiate_codecs", "num_training_steps"]


MAX_FORMER = 10_000


@dataclass(slots=True)
class Lease:
    """One agent's pairing with this worker.

    Attributes:
        agent: The agent's topic.
        lease: Its number on the wire.
        incarnation: The agent's process.
        num_samples: Its training samples; 0 for a visit, which has evaluations and predictions only.
        total_steps: Its training steps in all epochs.
        codecs: The codecs agreed on.
        heard_at: When it last said anything.
        absent_since: When it vanished, or None. Its lease stands for the grace period, and nobody is sent anything.
        is_done: Whether all its training steps are committed.
        num_val: Validation samples on which it judges candidates.
    """

    agent: str
    lease: int
    incarnation: int
    num_samples: int
    total_steps: int
    codecs: NegotiatedCodecs
    heard_at: float
    absent_since: float | None = None
    is_done: bool = False
    num_val: int = 0

    @property
    def is_visit(self) -> bool:
        """Whether it takes no part in the training."""
        return self.num_samples == 0


class LeaseTable:
    """All leases of one worker.

    Args:
        new_number: Draws a lease number that no other worker uses (random).

    Attributes:
        num_visits: Leases of agents that take no part in the training.
    """

    def __init__(self, new_number: Callable[[], int]) -> None:
        self._new_number = new_number
        self._by_agent: dict[str, Lease] = {}
        self._by_number: dict[int, Lease] = {}
        self._training: dict[str, Lease] = {}
        self._former: dict[int, Lease] = {}
        self.num_visits = 0

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._by_agent.values())

    def __len__(self) -> int:
        return len(self._by_agent)

    @property
    def num_taking_part(self) -> int:
        """Leases without those of visits: the run goes by these alone."""
        return len(self) - self.num_visits

    def of(self, agent: str) -> Lease | None:
        """Return an agent's lease."""
        return self._by_agent.get(agent)

    def numbered(self, number: int) -> Lease | None:
        """Return the lease of this number."""
        return self._by_number.get(number)

    def training(self) -> Collection[Lease]:
        """Return the leases that windows may wait for."""
        return self._training.values()

    def set_done(self, lease: Lease, *, is_done: bool) -> None:
        """Take notice that all training steps of an agent are committed, or that some are missing after all."""
        lease.is_done = is_done
        if is_done:
            self._training.pop(lease.agent, None)
        else:
            self._training[lease.agent] = lease

    def grant(
        self, hello: Hello, codecs: NegotiatedCodecs, total_steps: int, now: float, *, is_done: bool = False
    ) -> Lease:
        """Grant a lease in place of the agent's earlier one."""
        self.drop(hello.agent)
        number = self._new_number()
        while number in self._by_number or number in self._former:
            number = self._new_number()
        lease = Lease(hello.agent, number, hello.incarnation, hello.num_samples, total_steps, codecs, now)
        lease.num_val = hello.num_val
        self._by_agent[hello.agent] = self._by_number[number] = lease
        self.num_visits += lease.is_visit
        self.set_done(lease, is_done=is_done)
        return lease

    def drop(self, agent: str) -> Lease | None:
        """Take a lease back and return it."""
        lease = self._by_agent.pop(agent, None)
        if lease is not None:
            self._training.pop(agent, None)
            del self._by_number[lease.lease]
            self.num_visits -= lease.is_visit
            self._former[lease.lease] = lease
            if len(self._former) > MAX_FORMER:
                del self._former[next(iter(self._former))]
        return lease

    def former(self, number: int) -> Lease | None:
        """Return the lease that had this number before it was dropped, as far as is remembered."""
        return self._former.get(number)


def num_training_steps(manifest: Manifest, num_samples: int) -> int:
    """Return how many steps an agent with so many samples takes in all epochs."""
    return manifest.epochs * -(-num_samples // manifest.microbatch_samples)


def negotiate_codecs(wanted: CodecNames, codecs: tuple[str, ...], byte_stages: tuple[str, ...]) -> NegotiatedCodecs:
    """Return the codecs that both sides know, as near to the manifest's as can be.

    Byte stages of which the agent lacks one are left out, since they change no value. Another tensor codec would change
    the arithmetic of the run, so it is never put in place of the manifest's.

    Raises:
        ValueError: When the agent lacks a tensor codec; the text names it.
    """
    chosen = {}
    for kind, name in wanted:
        tensor_codec, *stages = name.split("+")
        if tensor_codec.partition(":")[0] not in codecs:
            raise ValueError(f"the run encodes {kind} as {name!r}, and the agent knows only {', '.join(codecs)}")
        known = all(stage.partition(":")[0] in byte_stages for stage in stages)
        chosen[kind] = name if known else tensor_codec
    return NegotiatedCodecs(**chosen)
