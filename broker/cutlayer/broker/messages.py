"""Every message of the protocol: its fields, their limits, and how it becomes bytes. broker/README.md specifies it.

A message is one MessagePack array `[version, kind, field, ...]`, fields in the order declared here. A receiver
refuses another version, an unknown kind and any field outside its limit, and ignores fields beyond those it knows.
Those that tell of an agent or a worker are in `reports.py`.
No message carries a label, raw data, a loss of a single sample or a name that means something outside the run.

Who sends what:

    agent -> worker     Hello, Activations, OutputGradients, TrainingDone, Goodbye, Telemetry, Probe
    worker -> agent     Welcome, Busy, Reject, Phase, Outputs, ActivationGradients, TokenizerWeights, Resend,
                        Candidate, ProbeAnswer
    worker -> worker    WindowState
    worker -> anybody   WorkerReport
    retained            AgentState, WorkerState, RunManifest, ModelChunk
    either way          Chunk (a piece of a message that is larger than one packet), MissingChunks
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import msgpack

from cutlayer.broker.errors import MalformedMessage, OversizedMessage, WrongVersion
from cutlayer.broker.manifest import MAX_MANIFEST_BYTES
from cutlayer.broker.reports import (
    MAX_EVALUATIONS as MAX_EVALUATIONS,
    MAX_MODALITIES as MAX_MODALITIES,
    MAX_NAME as MAX_NAME,
    MAX_TOPIC as MAX_TOPIC,
    MAX_TRAFFIC as MAX_TRAFFIC,
    Direction as Direction,
    Evaluation as Evaluation,
    MetricSums as MetricSums,
    SeriesDistribution as SeriesDistribution,
    SeriesNumber as SeriesNumber,
    StageTime as StageTime,
    Telemetry as Telemetry,
    Traffic as Traffic,
    WorkerReport as WorkerReport,
)
from cutlayer.broker.wire import (
    U32,
    CheckFailed,
    binary,
    choice,
    flag,
    many,
    number,
    pack_fields,
    pair,
    parse_fields,
    record,
    shape,
    text,
    uint,
    wire,
)

PROTOCOL_VERSION = 1

MAX_MESSAGE_BYTES = 64 << 20
"""A message, put together from its chunks."""
MAX_CHUNKS = 65_536
"""Chunks of one message."""
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
MAX_PARAMETERS = 3 * MAX_MODALITIES
"""Parameters of all tokenizers: a table's has a weight, a bias and an embedding, others have fewer."""
MAX_DETAIL = 512
MAX_RANGES = 4_096
"""Committed ranges in a Welcome. A ledger with more holes than this is sent without the last ones."""
MAX_MISSING_RANGES = 24
"""Ranges in a MissingChunks, which so fits the smallest packets that brokers are set to: it cannot go in chunks."""
MAX_CODECS = 64
MAX_LIST = 4_100
"""Entries of any list: a few more than the longest field has, so that a field's own check names it."""
MAX_TEXT_BYTES = 8_192
"""UTF-8 bytes of any text."""
MAX_PROBE_BYTES = 4_096
"""Payload of a Probe: enough to see what a packet of some size costs, too little to burden a worker."""
MAX_VALUES = 1 << 17
"""Values in all lists of a message together; the largest that the limits of the fields admit has about 60,000."""


class Mode(StrEnum):
    """What a microbatch is for. Only `train` goes on to gradients and a commit."""

    TRAIN = "train"
    EVAL = "eval"
    PREDICT = "predict"


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


class GoodbyeReason(StrEnum):
    """Why an agent leaves."""

    LEFT = "left"
    COMPLETED = "completed"


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
class NegotiatedCodecs:
    """The codecs of a lease, one a kind of tensor."""

    activations: str = wire(text(MAX_NAME))
    outputs: str = wire(text(MAX_NAME))
    output_gradients: str = wire(text(MAX_NAME))
    activation_gradients: str = wire(text(MAX_NAME))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a message that is larger than one packet.

    Attributes:
        message_id: BLAKE2b-64 of the whole message: a resent message has the same chunks.
        index: Position, from 0.
        count: Chunks in all.
        total_bytes: Size of the whole message.
        data: The piece.
    """

    KIND: ClassVar[int] = 0
    message_id: bytes = wire(binary(8))
    index: int = wire(uint(MAX_CHUNKS - 1))
    count: int = wire(uint(MAX_CHUNKS))
    total_bytes: int = wire(uint(MAX_MESSAGE_BYTES))
    data: bytes = wire(binary(MAX_MESSAGE_BYTES))


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
class TokenizerWeights:
    """The tokenizers as they are now, with trainable ones: whoever has older weights takes these.

    Attributes:
        lease: The lease.
        version: Version of the weights.
        tensors: (parameter of a tokenizer, its value).
    """

    KIND: ClassVar[int] = 23
    lease: int = wire(uint(U32))
    version: int = wire(uint())
    tensors: tuple[tuple[str, EncodedTensor], ...] = wire(
        many(pair(text(MAX_NAME), record(EncodedTensor)), MAX_PARAMETERS)
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """The weights that are to be judged now; said again until the agent has reported what its validation samples say.

    Attributes:
        lease: The lease.
        epoch: Epochs of the whole run that they are of.
        name: Names them: the same for bit-identical weights alone.
        tensors: (parameter of a tokenizer, its value), with trainable tokenizers: the candidate's own.
    """

    KIND: ClassVar[int] = 24
    lease: int = wire(uint(U32))
    epoch: int = wire(uint(U32))
    name: str = wire(text(MAX_NAME))
    tensors: tuple[tuple[str, EncodedTensor], ...] = wire(
        many(pair(text(MAX_NAME), record(EncodedTensor)), MAX_PARAMETERS), default=()
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


@dataclass(frozen=True, slots=True)
class AgentState:
    """Retained on the agent's state topic; its will says offline.

    Attributes:
        online: Whether the process is there.
        incarnation: Start of the process, in milliseconds since the epoch.
        answers: Incarnation of another process that has claimed this topic and is told that it is taken; 0 for none.
    """

    KIND: ClassVar[int] = 14
    online: bool = wire(flag())
    incarnation: int = wire(uint())
    answers: int = wire(uint(), default=0)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """Retained on the worker's state topic; its will says offline.

    Attributes:
        online: Whether it takes Hellos.
        worker: Its name.
        incarnation: Start of its process, in milliseconds since the epoch.
        manifest_digest: SHA-256 of the manifest it serves.
        phase: Where the run stands.
        agents: Leases it has granted.
        version: Version of its weights.
        reason: Why the run ended, when it has.
        is_draining: Whether it finishes what it has and takes nothing new.
        pool_generation: Counts the pool's changes of membership; 0 for a worker without a pool.
    """

    KIND: ClassVar[int] = 15
    online: bool = wire(flag())
    worker: str = wire(text(MAX_NAME))
    incarnation: int = wire(uint())
    manifest_digest: bytes = wire(binary(32))
    phase: RunPhase = wire(choice(RunPhase))
    agents: int = wire(uint(U32))
    version: int = wire(uint())
    reason: str = wire(text(MAX_DETAIL))
    is_draining: bool = wire(flag(), default=False)
    pool_generation: int = wire(uint(), default=0)


@dataclass(frozen=True, slots=True)
class RunManifest:
    """The manifest, retained on `cutlayer/run`.

    Attributes:
        document: `Manifest.to_bytes`.
    """

    KIND: ClassVar[int] = 16
    document: bytes = wire(binary(MAX_MANIFEST_BYTES))


@dataclass(frozen=True, slots=True)
class ModelChunk:
    """A piece of the client-side weights, retained on `cutlayer/model/<digest>/<index>`."""

    KIND: ClassVar[int] = 17
    index: int = wire(uint(MAX_CHUNKS - 1))
    count: int = wire(uint(MAX_CHUNKS))
    data: bytes = wire(binary(MAX_MESSAGE_BYTES))


@dataclass(frozen=True, slots=True)
class WindowState:
    """A worker of a pool tells the others what it holds of the open window. Not retained.

    Attributes:
        worker: Its name.
        incarnation: Start of its process, in milliseconds since the epoch.
        window: Number of the window.
        num_samples: Samples whose gradients it holds, or is adding right now.
        agents: In synchronous mode, the agents that those samples are of; else empty.
        closes: Whether it asks all to close the window now: it is full, or due, or somebody joins.
    """

    KIND: ClassVar[int] = 18
    worker: str = wire(text(MAX_NAME))
    incarnation: int = wire(uint())
    window: int = wire(uint())
    num_samples: int = wire(uint())
    agents: tuple[str, ...] = wire(many(text(MAX_TOPIC), MAX_LIST))
    closes: bool = wire(flag())


@dataclass(frozen=True, slots=True)
class MissingChunks:
    """The receiver of a chunked message that does not go on asks its sender for single pieces of it.

    Attributes:
        message_id: The chunks'.
        count: The chunks': one message may have been cut in two ways.
        ranges: Ranges [start, stop) of the pieces that are missing, sorted; neither empty nor touching.
    """

    KIND: ClassVar[int] = 19
    message_id: bytes = wire(binary(8))
    count: int = wire(uint(MAX_CHUNKS))
    ranges: tuple[tuple[int, int], ...] = wire(many(pair(uint(MAX_CHUNKS), uint(MAX_CHUNKS)), MAX_MISSING_RANGES))


@dataclass(frozen=True, slots=True)
class Probe:
    """Whoever sets a site up asks a worker to answer: no lease is needed, and no run is disturbed.

    Attributes:
        nonce: Random number that the answer repeats.
        sent_at: When it was sent, in seconds since the epoch by the asker's clock.
        payload: Bytes without a meaning, which give the packet its size.
    """

    KIND: ClassVar[int] = 20
    nonce: int = wire(uint())
    sent_at: float = wire(number(0.0))
    payload: bytes = wire(binary(MAX_PROBE_BYTES))


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """A worker's answer to a Probe: it was read here, and the way back is open.

    Attributes:
        worker: The worker's name.
        nonce: Echo of the Probe's.
        sent_at: Echo of the Probe's.
        answered_at: When it was answered, in seconds since the epoch by the worker's clock.
    """

    KIND: ClassVar[int] = 21
    worker: str = wire(text(MAX_NAME))
    nonce: int = wire(uint())
    sent_at: float = wire(number(0.0))
    answered_at: float = wire(number(0.0))


Message = (
    Chunk
    | Hello
    | Welcome
    | Busy
    | Reject
    | Activations
    | Outputs
    | OutputGradients
    | ActivationGradients
    | TokenizerWeights
    | Candidate
    | Resend
    | Phase
    | TrainingDone
    | Goodbye
    | Telemetry
    | AgentState
    | WorkerState
    | RunManifest
    | ModelChunk
    | WindowState
    | MissingChunks
    | Probe
    | ProbeAnswer
    | WorkerReport
)

MESSAGE_TYPES: dict[int, type[Message]] = {kind.KIND: kind for kind in Message.__args__}


def serialize(message: Message) -> bytes:
    """Turn a message into bytes.

    Raises:
        ValueError: When a field breaks its own limit; that is a fault of this program.
    """
    packed: bytes = msgpack.packb([PROTOCOL_VERSION, message.KIND, *pack_fields(message)], use_bin_type=True)
    return packed


def parse(data: bytes) -> Message:
    """Turn bytes from a peer into a message.

    Raises:
        OversizedMessage: When there are more than `MAX_MESSAGE_BYTES`.
        WrongVersion: When the protocol version is another.
        MalformedMessage: When they are no MessagePack, of no known kind, or break a field's limit.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise OversizedMessage("message", len(data), MAX_MESSAGE_BYTES)
    try:
        values = _unpack(data)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise MalformedMessage(f"not MessagePack: {type(error).__name__}: {error}") from None
    if not isinstance(values, list) or len(values) < 2:
        raise MalformedMessage("not an array of version, kind and fields")
    version, kind = values[0], values[1]
    if type(version) is not int or type(kind) is not int:
        raise MalformedMessage("version and kind are no integers")
    if version != PROTOCOL_VERSION:
        raise WrongVersion(version, PROTOCOL_VERSION)
    message_type = MESSAGE_TYPES.get(kind)
    if message_type is None:
        raise MalformedMessage(f"unknown message kind {kind}")
    try:
        message: Message = parse_fields(message_type, values[2:])
    except CheckFailed as error:
        raise MalformedMessage(str(error)) from None
    return message


def _unpack(data: bytes) -> Any:
    """Read MessagePack, taking no more memory than a small multiple of what has arrived, and 34 MB.

    A list header of five bytes may announce millions of entries, and an empty list of one byte takes 64: so the
    lengths of lists and texts are limited, and all values are counted. What remains is 1,024 lists inside one
    another, the most that msgpack admits, of `MAX_LIST` places each. No message has a map or an extension type.
    """
    values_left = MAX_VALUES

    def count(values: list[Any]) -> list[Any]:
        nonlocal values_left
        values_left -= 1 + len(values)
        if values_left < 0:
            raise ValueError(f"more than {MAX_VALUES} values")
        return values

    return msgpack.unpackb(
        data,
        raw=False,
        list_hook=count,
        object_hook=_refuse,
        ext_hook=_refuse,
        max_array_len=MAX_LIST,
        max_str_len=MAX_TEXT_BYTES,
        max_map_len=0,
        max_ext_len=0,
    )


def _refuse(*_: object) -> None:
    raise ValueError("a map or an extension type, which no message has")
