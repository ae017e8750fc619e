"""The messages of a lease: an agent asks for one, a worker grants or refuses it, the run goes on, the agent leaves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from cutlayer.broker.reports import Telemetry
from cutlayer.broker.wire import U32, binary, choice, many, number, pair, record, text, uint, wire
from cutlayer.broker.wire_limits import MAX_DETAIL, MAX_NAME, MAX_TOPIC

MAX_RANGES = 4_096
"""Committed ranges in a Welcome. A ledger with more holes than this is sent without the last ones."""
MAX_CODECS = 64


class RunPhase(StrEnum):
    """Where the run stands."""

    WAITING = "waiting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    ENDED = "ended"


class RejectReason(StrEnum):
    """Why a worker refuses an agent for good."""

    MANIFEST = "manifest"
    CODEC = "codec"
    ENDED = "ended"
    CONTENT = "content"


class GoodbyeReason(StrEnum):
    """Why an agent leaves."""

    LEFT = "left"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class NegotiatedCodecs:
    """The codecs of a lease, one a kind of tensor."""

    activations: str = wire(text(MAX_NAME))
    outputs: str = wire(text(MAX_NAME))
    output_gradients: str = wire(text(MAX_NAME))
    activation_gradients: str = wire(text(MAX_NAME))


@dataclass(frozen=True, slots=True)
class Hello:
    """An agent asks for a lease.

    Attributes:
        agent: The agent's topic.
        incarnation: Start of the agent's process, in milliseconds since the epoch.
        manifest_digest: SHA-256 of the manifest the agent has read.
        num_samples: Its training samples. 0 for a visit: it has evaluations and predictions only, and the run neither
            waits for it nor counts it.
        codecs: Tensor codecs that it knows.
        byte_stages: Byte stages that it knows.
        software: Its version, for the log.
        num_val: Validation samples that it has for judging candidates; 0 where the run judges none.
    """

    KIND: ClassVar[int] = 1
    agent: str = wire(text(MAX_TOPIC))
    incarnation: int = wire(uint())
    manifest_digest: bytes = wire(binary(32))
    num_samples: int = wire(uint())
    codecs: tuple[str, ...] = wire(many(text(MAX_NAME), MAX_CODECS))
    byte_stages: tuple[str, ...] = wire(many(text(MAX_NAME), MAX_CODECS))
    software: str = wire(text(MAX_NAME))
    num_val: int = wire(uint(), default=0)


@dataclass(frozen=True, slots=True)
class Welcome:
    """A worker grants a lease.

    Attributes:
        worker: The worker's name.
        incarnation: Echo of the Hello's.
        lease: Names the pairing in every later message; random, so that two workers' do not collide.
        credits: Microbatches that may be outstanding at this worker.
        codecs: The codecs of this lease.
        committed: Ranges [start, stop) of this agent's training steps that the run has already committed.
        phase: Where the run stands.
        lease_s: Seconds of silence after which the worker takes the lease back.
        store: Names the store that keeps activations of samples with numbers; workers that share one say the same.
            Empty where nothing is kept.
    """

    KIND: ClassVar[int] = 2
    worker: str = wire(text(MAX_NAME))
    incarnation: int = wire(uint())
    lease: int = wire(uint(U32))
    credits: int = wire(uint(1024))
    codecs: NegotiatedCodecs = wire(record(NegotiatedCodecs))
    committed: tuple[tuple[int, int], ...] = wire(many(pair(uint(), uint()), MAX_RANGES))
    phase: RunPhase = wire(choice(RunPhase))
    lease_s: float = wire(number(0.0))
    store: str = wire(text(MAX_NAME), default="")


@dataclass(frozen=True, slots=True)
class Busy:
    """A worker has no room now; the agent asks again after `retry_after_s` seconds."""

    KIND: ClassVar[int] = 3
    worker: str = wire(text(MAX_NAME))
    incarnation: int = wire(uint())
    retry_after_s: float = wire(number(0.0, 86_400.0))


@dataclass(frozen=True, slots=True)
class Reject:
    """A worker refuses the agent for good."""

    KIND: ClassVar[int] = 4
    worker: str = wire(text(MAX_NAME))
    incarnation: int = wire(uint())
    reason: RejectReason = wire(choice(RejectReason))
    detail: str = wire(text(MAX_DETAIL))


@dataclass(frozen=True, slots=True)
class Phase:
    """The run has reached another phase."""

    KIND: ClassVar[int] = 10
    lease: int = wire(uint(U32))
    phase: RunPhase = wire(choice(RunPhase))
    reason: str = wire(text(MAX_DETAIL))


@dataclass(frozen=True, slots=True)
class TrainingDone:
    """All steps of the agent's epochs are committed: no window waits for it any more."""

    KIND: ClassVar[int] = 11
    lease: int = wire(uint(U32))


@dataclass(frozen=True, slots=True)
class Goodbye:
    """An agent gives its lease back, with its last counters. Sent again until a Phase `ended` answers it.

    Attributes:
        lease: The lease.
        reason: Whether its work is done.
        telemetry: Its counters; a message of their own could come too late to be taken.
    """

    KIND: ClassVar[int] = 12
    lease: int = wire(uint(U32))
    reason: GoodbyeReason = wire(choice(GoodbyeReason))
    telemetry: Telemetry = wire(record(Telemetry))
