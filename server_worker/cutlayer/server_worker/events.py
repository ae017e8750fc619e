"""What happens at a worker, as frozen records. The core emits them; adapters log and count (`metrics.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cutlayer.broker.messages import RunPhase, Telemetry

__all__ = [
    "AgentCountChanged",
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
    "WindowCommitted",
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
    """

    window: int
    num_samples: int
    num_microbatches: int
    version: int
    gradient_norm: float
    learning_rate: float
    live_samples: int


@dataclass(frozen=True, slots=True)
class TelemetryTaken:
    """An agent's counters came; `previous` are those of the same process before them."""

    agent: str
    telemetry: Telemetry
    previous: Telemetry | None


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
    ConnectionChanged
    | AgentCountChanged
    | BudgetComputed
    | PhaseChanged
    | MessageRefused
    | DuplicateReceived
    | StageTimed
    | WindowCommitted
    | TelemetryTaken
    | CheckpointSaved
    | RoundEnded
    | StateTakenOver
)
EventHandler = Callable[[Event], None]
