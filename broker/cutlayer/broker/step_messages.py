"""The messages of a step, from a microbatch's activations to its commit, and the tensors that they carry."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from cutlayer.broker.wire import U32, binary, choice, many, number, pair, record, shape, text, uint, wire
from cutlayer.broker.wire_limits import MAX_MESSAGE_BYTES, MAX_MODALITIES, MAX_NAME, MAX_PARAMETERS

MAX_TENSOR_DIMENSIONS = 4
MAX_DIMENSION = 65_536
MAX_TENSOR_ELEMENTS = 64 << 20
"""256 MiB as float32."""
MAX_SAMPLES_BYTES = 4 * MAX_DIMENSION
"""Numbers of the samples of a microbatch, four bytes each."""
MAX_MASK_BYTES = MAX_DIMENSION // 8
"""A bit for each of them."""
MAX_BASES_BYTES = 4 + MAX_DIMENSION
"""A checksum, and a byte for each sample."""


class Mode(StrEnum):
    """What a microbatch is for. Only `train` goes on to gradients and a commit."""

    TRAIN = "train"
    EVAL = "eval"
    PREDICT = "predict"


class ResendReason(StrEnum):
    """Why a worker asks for a step's activations again.

    `lease`: say Hello first, the lease is gone. `missing`: its store lacks samples that were referred to.
    `candidate`: not at all, the worker does not hold the candidate's weights.
    """

    STALE = "stale"
    UNKNOWN = "unknown"
    LEASE = "lease"
    MISSING = "missing"
    CANDIDATE = "candidate"


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A float32 tensor under a codec.

    Attributes:
        codec: Name for `cutlayer.compression.codec_from_name`.
        shape: Dimensions, at most four.
        data: The encoded bytes.
    """

    codec: str = wire(text(MAX_NAME))
    shape: tuple[int, ...] = wire(shape(MAX_TENSOR_DIMENSIONS, MAX_DIMENSION, MAX_TENSOR_ELEMENTS))
    data: bytes = wire(binary(MAX_MESSAGE_BYTES))


@dataclass(frozen=True, slots=True)
class Activations:
    """A microbatch at the cut, going up: tensors, references to what the worker's store has, or both.

    Samples that come as tensors are *fresh*: F of B. `sample_refs.py` packs and reads the byte strings.

    Attributes:
        lease: The lease.
        step: Number of the agent's step in this mode. A training step's number fixes its samples.
        mode: What it is for.
        num_samples: Samples B.
        tensors: (modality, tokens (F, N, D)) of each modality given; K tokens for N where they are reduced. Empty
            where no sample is fresh.
        samples: The agent's number of each sample, B unsigned integers of one, two or four bytes. Empty where the
            agent names none: nothing of them may be kept then.
        stored: B bits, one for each sample that is to be taken from the store. Empty where all are fresh.
        from_store: The modalities given, where no sample is fresh; else empty.
        bases: Where `tensors` are changes: a checksum of what the worker is to have afterwards, and for each sample
            the count of visits, modulo 256, of the base that its change is to; 0 for a change from zeros, whose count
            is 1 then. All samples are fresh. Empty where `tensors` are the activations themselves.
        positions: (modality, N bits for each fresh sample), which K tokens these are; of reduced modalities only.
        candidate: The candidate whose weights are to be evaluated; empty for the newest weights.
    """

    KIND: ClassVar[int] = 5
    lease: int = wire(uint(U32))
    step: int = wire(uint())
    mode: Mode = wire(choice(Mode))
    num_samples: int = wire(uint(MAX_DIMENSION))
    tensors: tuple[tuple[str, EncodedTensor], ...] = wire(
        many(pair(text(MAX_NAME), record(EncodedTensor)), MAX_MODALITIES)
    )
    samples: bytes = wire(binary(MAX_SAMPLES_BYTES), default=b"")
    stored: bytes = wire(binary(MAX_MASK_BYTES), default=b"")
    from_store: tuple[str, ...] = wire(many(text(MAX_NAME), MAX_MODALITIES), default=())
    bases: bytes = wire(binary(MAX_BASES_BYTES), default=b"")
    positions: tuple[tuple[str, bytes], ...] = wire(
        many(pair(text(MAX_NAME), binary(MAX_MESSAGE_BYTES)), MAX_MODALITIES), default=()
    )
    candidate: str = wire(text(MAX_NAME), default="")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities given, in the order of the message."""
        return self.from_store or tuple(name for name, _ in self.tensors)


@dataclass(frozen=True, slots=True)
class Outputs:
    """The model's outputs for a microbatch, going down.

    Attributes:
        lease: The lease.
        step: Echo of the Activations'.
        mode: Echo of the Activations'.
        version: Version of the weights.
        server_s: Seconds from the worker's receipt of the activations to this answer.
        outputs: (B, C); features (B, D) where the heads are at the agents.
        unkept: B bits, one for each sample with a number that the store has no room for; empty where all are kept.
    """

    KIND: ClassVar[int] = 6
    lease: int = wire(uint(U32))
    step: int = wire(uint())
    mode: Mode = wire(choice(Mode))
    version: int = wire(uint())
    server_s: float = wire(number(0.0))
    outputs: EncodedTensor = wire(record(EncodedTensor))
    unkept: bytes = wire(binary(MAX_MASK_BYTES), default=b"")


@dataclass(frozen=True, slots=True)
class OutputGradients:
    """The gradient of the summed loss at the outputs, going up.

    Attributes:
        lease: The lease.
        step: The training step.
        version: Echo of the Outputs': a gradient of other outputs is not taken.
        gradients: (B, C); (B, D) at features.
        tokenizer_gradients: (parameter of a tokenizer, its gradient), summed over the samples of the steps since the
            agent's last; with trainable tokenizers, now and then.
    """

    KIND: ClassVar[int] = 7
    lease: int = wire(uint(U32))
    step: int = wire(uint())
    version: int = wire(uint())
    gradients: EncodedTensor = wire(record(EncodedTensor))
    tokenizer_gradients: tuple[tuple[str, EncodedTensor], ...] = wire(
        many(pair(text(MAX_NAME), record(EncodedTensor)), MAX_PARAMETERS), default=()
    )


@dataclass(frozen=True, slots=True)
class ActivationGradients:
    """The commit of a training step; with trainable tokenizers also the gradients at the cut.

    Attributes:
        lease: The lease.
        step: The training step.
        window: Number of the window that committed it.
        server_s: Seconds from the worker's receipt of the output gradients to this answer.
        tensors: (modality, gradient (B, N, D)); empty with frozen tokenizers.
    """

    KIND: ClassVar[int] = 8
    lease: int = wire(uint(U32))
    step: int = wire(uint())
    window: int = wire(uint())
    server_s: float = wire(number(0.0))
    tensors: tuple[tuple[str, EncodedTensor], ...] = wire(
        many(pair(text(MAX_NAME), record(EncodedTensor)), MAX_MODALITIES)
    )


@dataclass(frozen=True, slots=True)
class Resend:
    """A worker has no use for what it holds of a step and asks for its activations again.

    Attributes:
        lease: The lease.
        step: The step.
        mode: Its mode.
        reason: Why.
        missing: B bits, one for each sample that the store lacks, for the reason `missing`; else empty.
    """

    KIND: ClassVar[int] = 9
    lease: int = wire(uint(U32))
    step: int = wire(uint())
    mode: Mode = wire(choice(Mode))
    reason: ResendReason = wire(choice(ResendReason))
    missing: bytes = wire(binary(MAX_MASK_BYTES), default=b"")
