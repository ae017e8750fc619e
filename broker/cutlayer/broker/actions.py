"""What a session asks its driver to do. The session decides, the driver acts."""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.broker.errors import CutlayerError
from cutlayer.broker.messages import EncodedTensor, Message, Mode, NegotiatedCodecs, RunPhase, Telemetry
from cutlayer.broker.selection import Judged

__all__ = [
    "AgentJoined",
    "AgentLeft",
    "CandidateGone",
    "CandidateJudged",
    "CandidateOffered",
    "Duplicate",
    "Fail",
    "LeaseGranted",
    "LeaseLost",
    "LedgerTold",
    "OutputsReceived",
    "PhaseReached",
    "Publish",
    "Refused",
    "StepCommitted",
    "Subscribe",
    "TelemetryReceived",
    "TensorsWanted",
    "Unsubscribe",
    "WeightsReceived",
]


@dataclass(frozen=True, slots=True)
class Publish:
    """Send a message. `repeated` marks one that was sent before."""

    topic: str
    message: Message
    qos: int = 1
    retain: bool = False
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe to a topic filter."""

    topic_filter: str


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Give a topic filter up."""

    topic_filter: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The program cannot go on."""

    error: CutlayerError


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    """To the agent: a worker serves it now. `committed` are the ranges of its steps that need no work any more."""

    worker: str
    committed: tuple[tuple[int, int], ...]
    phase: RunPhase


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """To the agent: a worker is gone; what it held goes elsewhere."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class LedgerTold:
    """To the agent: the ranges of its steps that a worker, which serves it already, has committed by now."""

    worker: str
    committed: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class OutputsReceived:
    """To the agent: compute loss and gradients from these outputs, then `submit_gradients`.

    Attributes:
        step: The step.
        mode: Its mode.
        outputs: The model's outputs, (B, C).
        codecs: The lease's.
        version: Version of the weights.
        round_trip_s: Seconds since the activations were sent.
        server_s: Seconds of those at the worker.
        store: The worker's store, which has the microbatch's samples now, but for those unkept; empty for none.
        unkept: B bits, one for each sample that it has no room for; empty where it has all.
    """

    step: int
    mode: Mode
    outputs: EncodedTensor
    codecs: NegotiatedCodecs
    version: int
    round_trip_s: float
    server_s: float
    store: str = ""
    unkept: bytes = b""


@dataclass(frozen=True, slots=True)
class TensorsWanted:
    """To the agent: the worker's store lacks samples of a microbatch; make it again with their tensors, and `supply`.

    Attributes:
        step: The step.
        mode: Its mode.
        store: The store that lacks them.
        missing: B bits, one for each sample that it lacks.
        codecs: The lease's.
    """

    step: int
    mode: Mode
    store: str
    missing: bytes
    codecs: NegotiatedCodecs


@dataclass(frozen=True, slots=True)
class CandidateOffered:
    """To the agent: evaluate these weights on validation samples, with the candidate's own tokenizers where given."""

    epoch: int
    name: str
    tensors: tuple[tuple[str, EncodedTensor], ...]


@dataclass(frozen=True, slots=True)
class CandidateGone:
    """To the agent: the worker does not hold the candidate that a microbatch of this number was to evaluate."""

    step: int


@dataclass(frozen=True, slots=True)
class StepCommitted:
    """To the agent: a training step is part of the model.

    Attributes:
        step: The step.
        window: The window; None where only the ledger has told it.
        tensors: The gradients at the cut, by modality, with trainable tokenizers; none where they are lost.
        codec: What they have to be encoded as.
    """

    step: int
    window: int | None
    tensors: tuple[tuple[str, EncodedTensor], ...] = ()
    codec: str = ""


@dataclass(frozen=True, slots=True)
class WeightsReceived:
    """To the agent: weights of its tokenizers, under a lease; whoever has older ones of that lease takes them."""

    lease: int
    version: int
    tensors: tuple[tuple[str, EncodedTensor], ...]


@dataclass(frozen=True, slots=True)
class PhaseReached:
    """To both: the run has reached another phase."""

    phase: RunPhase
    reason: str


@dataclass(frozen=True, slots=True)
class AgentJoined:
    """To the worker: an agent has a lease; without training samples it is a visit."""

    agent: str
    num_samples: int
    returning: bool


@dataclass(frozen=True, slots=True)
class AgentLeft:
    """To the worker: an agent has given its lease back or lost it."""

    agent: str
    reason: str


@dataclass(frozen=True, slots=True)
class CandidateJudged:
    """To the worker: what the validation samples of all agents say of a candidate; `text` says it to people."""

    judged: Judged
    text: str


@dataclass(frozen=True, slots=True)
class TelemetryReceived:
    """To the worker: an agent's counters."""

    agent: str
    telemetry: Telemetry


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A message that the state table already has; answered from memory or ignored."""

    kind: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that was not taken, and why; `label` is fit for a metric."""

    label: str
    detail: str


AgentAction = (
    Publish
    | Subscribe
    | Unsubscribe
    | Fail
    | LeaseGranted
    | LeaseLost
    | LedgerTold
    | OutputsReceived
    | CandidateOffered
    | CandidateGone
    | StepCommitted
    | TensorsWanted
    | WeightsReceived
    | PhaseReached
    | Duplicate
    | Refused
)
WorkerAction = (
    Publish
    | Subscribe
    | Unsubscribe
    | Fail
    | AgentJoined
    | AgentLeft
    | CandidateJudged
    | TelemetryReceived
    | PhaseReached
    | Duplicate
    | Refused
)
