"""The workers that an agent knows: who serves it, how far each is, and whom the next microbatch goes to.

A microbatch goes to the open worker that holds the fewest of this agent's. Among equals the choice is by rendezvous
hashing (Thaler and Ravishankar, 1998) of agent, worker and step: it needs no randomness, and spreads agents over
workers, and one agent's steps over them, also where everybody sends one microbatch at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from cutlayer.broker.messages import Mode, NegotiatedCodecs, RunPhase, WorkerState

__all__ = ["MAX_WORKERS", "ExchangeKey", "KnownWorker", "WorkerTable"]

ExchangeKey = tuple[Mode, int]

MAX_WORKERS = 1_024
"""Workers that an agent knows; their names come from whoever may publish below `cutlayer/workers`."""

_ORDER = {phase: place for place, phase in enumerate(RunPhase)}


@dataclass(slots=True)
class KnownWorker:
    """What an agent knows of one worker.

    Attributes:
        name: Its name.
        incarnation: Start of its process, in milliseconds since the epoch.
        manifest_digest: The run that it serves.
        lease: The lease that it has granted, or None.
        credits: Microbatches that it takes at once.
        codecs: The lease's codecs.
        lease_s: Seconds of silence that end the lease.
        store: Names the store that keeps activations for it; empty for none.
        phase: The furthest phase that it has told under this lease.
        is_draining: Whether it finishes what it has and takes nothing new.
        is_silent: Whether it has left repetitions unanswered and said nothing since.
        owes_ledger: Whether it was asked for the ledger, since another worker was lost, and has not told it yet.
        is_over: Whether its run has ended, as its state or its Reject says.
        heard_at: When it last said anything to this agent.
        hello_at: When it is to be asked again, if it has not answered by then.
        hello_wait_s: How long its answer to the next Hello is waited for.
        outstanding: What it holds of this agent's.
        former: Its leases before this one, whose Welcomes may still be under way.
    """

    name: str
    incarnation: int = 0
    manifest_digest: bytes = b""
    lease: int | None = None
    credits: int = 0
    codecs: NegotiatedCodecs | None = None
    lease_s: float = 0.0
    store: str = ""
    phase: RunPhase = RunPhase.WAITING
    is_draining: bool = False
    is_silent: bool = False
    owes_ledger: bool = False
    is_over: bool = False
    heard_at: float = float("-inf")
    hello_at: float = 0.0
    hello_wait_s: float = 0.0
    outstanding: set[ExchangeKey] = field(default_factory=set)
    former: set[int] = field(default_factory=set)

    @property
    def is_open(self) -> bool:
        """Whether it takes microbatches, as far as there are credits."""
        is_heard = self.lease is not None and not (self.is_draining or self.is_silent)
        return is_heard and self.phase is not RunPhase.ENDED

    @property
    def has_credit(self) -> bool:
        """Whether a microbatch may go to it now."""
        return self.is_open and len(self.outstanding) < self.credits

    @property
    def is_asked(self) -> bool:
        """Whether it is asked for a lease, for its ledger or for any word, until it answers."""
        if self.lease is None:
            return not self.is_draining
        return self.is_silent or self.owes_ledger

    def take_state(self, state: WorkerState) -> None:
        """Take notice of its retained state, which says nothing of a lease."""
        self.incarnation = state.incarnation
        self.manifest_digest = state.manifest_digest
        self.is_draining = state.is_draining
        self.is_over = state.phase is RunPhase.ENDED

    def hear(self, now: float) -> None:
        """Take notice that it has said something to this agent."""
        self.heard_at, self.is_silent = now, False

    def advance(self, phase: RunPhase) -> None:
        """Take notice of a phase; under one lease an earlier one than the last is late news."""
        if _ORDER[phase] > _ORDER[self.phase]:
            self.phase = phase

    def end_lease(self) -> None:
        """Forget the lease, if there is one."""
        if self.lease is not None:
            self.former.add(self.lease)
            self.lease, self.is_silent, self.owes_ledger = None, False, False
            self.hello_wait_s = 0.0


class WorkerTable:
    """All workers that an agent knows.

    Args:
        agent: The agent's topic.
    """

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._workers: dict[str, KnownWorker] = {}

    def __iter__(self) -> Iterator[KnownWorker]:
        return iter(self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)

    def add(self, worker: KnownWorker) -> None:
        """Add a worker that has come online."""
        self._workers[worker.name] = worker

    def remove(self, worker: KnownWorker) -> None:
        """Forget a worker that has gone offline."""
        del self._workers[worker.name]

    def named(self, name: str | None) -> KnownWorker | None:
        """Return the worker of this name, if it is online."""
        return None if name is None else self._workers.get(name)

    def leasing(self, number: int) -> KnownWorker | None:
        """Return the worker that has granted this lease."""
        return next((worker for worker in self if worker.lease == number), None)

    def leased(self) -> list[KnownWorker]:
        """Return the workers that serve the agent now."""
        return [worker for worker in self if worker.lease is not None]

    def has_credit(self) -> bool:
        """Return whether a microbatch may go to any of them now."""
        return any(worker.has_credit for worker in self)

    def choose(self, step: int) -> KnownWorker | None:
        """Return the worker that a microbatch goes to, or None while none has a credit.

        Args:
            step: The microbatch's number.
        """

        def place(worker: KnownWorker) -> tuple[int, bytes]:
            # Neither topics nor names have spaces.
            name = f"{self._agent} {worker.name} {step}".encode()
            return len(worker.outstanding), hashlib.blake2b(name, digest_size=8).digest()

        return min((worker for worker in self if worker.has_credit), key=place, default=None)

    def phase(self, before: RunPhase) -> RunPhase:
        """Return how far the run is: as far as the furthest of the leased workers, but training while one trains.

        A worker to which some agent has not come yet may evaluate before the others. The run has ended only when all of
        them say so: one that ends alone, by an error or because it has lost touch with its pool, leaves the run to the
        others.

        Args:
            before: The answer while nobody serves the agent.
        """
        phases = [worker.phase for worker in self.leased()]
        going_on = [phase for phase in phases if phase is not RunPhase.ENDED]
        if RunPhase.TRAINING in going_on:
            return RunPhase.TRAINING
        return max(going_on or phases, key=_ORDER.__getitem__, default=before)
