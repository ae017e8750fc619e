"""What happens at a worker, as frozen records. The core emits them; adapters log and count (`metrics.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cutlayer.broker.messages import Direction, RunPhase, Telemetry, Traffic

__all__ = [
    "ActivationsAssembled",
    "AgentCountChanged",
    "BrokerReported",
    "BudgetComputed",
    "CheckpointSaved",
    "ConnectionChanged",
    "DuplicateReceived",
    "Event",
    "EventHandler",
    "MessageRefused",
    "PhaseChanged",
    "RoundEnded",
    "StageTimed",
    "StateTakenOver",
    "TelemetryTaken",
    "TensorsMoved",
    "WindowCommitted",
    "WorkerSampled",
]


@dataclass(frozen=True, slots=True)
class ConnectionChanged:
    """The connection to the broker came or went."""

    is_connected: bool


@dataclass(frozen=True, slots=True)
class AgentCountChanged:
    """A lease was granted or taken back."""

    num_agents: int


@dataclass(frozen=True, slots=True)
class BudgetComputed:
    """What the broker may have to hold for this worker: in all, and of that for each agent, in bytes."""

    total_bytes: int
    agent_bytes: int


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """The run reached another phase."""

    phase: RunPhase


@dataclass(frozen=True, slots=True)
class MessageRefused:
    """A message was not taken; `label` is one of a few constants."""

    label: str


@dataclass(frozen=True, slots=True)
class DuplicateReceived:
    """A message came twice."""

    kind: str


@dataclass(frozen=True, slots=True)
class ActivationsAssembled:
    """A microbatch is whole: so many of its samples came as tensors, so many from the store."""

    num_fresh: int
    num_stored: int


@dataclass(frozen=True, slots=True)
class StageTimed:
    """A stage of the work took so many seconds for so many samples."""

    stage: str
    seconds: float
    num_samples: int


@dataclass(frozen=True, slots=True)
class WindowCommitted:
    """An optimizer step was taken.

    Attributes:
        window: Windows committed, this one included.
        num_samples: Samples in it.
        num_microbatches: Microbatches in it.
        version: Version of the weights after it.
        gradient_norm: Norm of the mean gradient before clipping.
        learning_rate: Learning rate of the step.
        live_samples: Samples whose graphs are alive.
        wanted_samples: Samples that a window wants.
        staleness: Of each microbatch of this worker in it, versions between its forward pass and this step.
        waits_s: Of each of them, seconds from its backward pass to now.
    """

    window: int
    num_samples: int
    num_microbatches: int
    version: int
    gradient_norm: float
    learning_rate: float
    live_samples: int
    wanted_samples: int = 0
    staleness: tuple[int, ...] = ()
    waits_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class TelemetryTaken:
    """An agent's counters came.

    Attributes:
        agent: The agent's topic.
        telemetry: Its counters.
        previous: Those of the same process before them.
        is_counted_here: Whether this worker is the one of its pool that adds up what agents count: all hear it.
    """

    agent: str
    telemetry: Telemetry
    previous: Telemetry | None
    is_counted_here: bool = True


@dataclass(frozen=True, slots=True)
class TensorsMoved:
    """A message with tensors was received (up) or sent (down).

    Attributes:
        direction: Up or down.
        kind: The message's class name.
        payload_bytes: Its MQTT payloads, all chunks.
    """

    direction: Direction
    kind: str
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerSampled:
    """How things stand, once a second or so.

    Attributes:
        wire_sent_bytes: All that this worker has written to the broker, since its start.
        wire_received_bytes: All that it has read.
        traffic: Its messages since its start.
        open_samples: Samples in the open window.
        live_samples: Samples whose graphs are alive.
        credits_granted: Microbatches that agents may have outstanding here.
        credits_used: Microbatches that are here.
        num_workers: Workers of the run that are online.
    """

    wire_sent_bytes: int
    wire_received_bytes: int
    traffic: tuple[Traffic, ...]
    open_samples: int
    live_samples: int
    credits_granted: int
    credits_used: int
    num_workers: int


@dataclass(frozen=True, slots=True)
class BrokerReported:
    """The broker has told one figure of itself; `metric` is the catalogue's name of it."""

    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A checkpoint was written in so many seconds."""

    window: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """A round with the other replicas is over: after so many seconds, with so many workers."""

    seconds: float
    num_workers: int
    failed: bool


@dataclass(frozen=True, slots=True)
class StateTakenOver:
    """This worker was behind its pool, and goes on from another replica's weights."""

    window: int


Event = (
    ActivationsAssembled
    | ConnectionChanged
    | AgentCountChanged
    | BudgetComputed
    | PhaseChanged
    | MessageRefused
    | DuplicateReceived
    | StageTimed
    | WindowCommitted
    | TelemetryTaken
    | TensorsMoved
    | WorkerSampled
    | BrokerReported
    | CheckpointSaved
    | RoundEnded
    | StateTakenOver
)
EventHandler = Callable[[Event], None]
