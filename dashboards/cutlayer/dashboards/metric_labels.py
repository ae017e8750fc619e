"""Values that the labels of metrics have, where they are known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

__all__ = [
    "AGENT_STAGES",
    "NO_CODEC",
    "OTHER",
    "OTHER_KINDS",
    "PHASES",
    "REFUSALS",
    "TENSOR_KINDS",
    "Side",
    "Stage",
]

NO_CODEC: Final = "none"
"""Label of messages without tensors."""
OTHER: Final = "other"
"""Label of what a peer has named and no list here has, and of the agents beyond those that are listed."""


class Side(StrEnum):
    """Which program a number is of."""

    AGENT = "agent"
    WORKER = "worker"


class Stage(StrEnum):
    """Where the time of a step goes, in the order of a step."""

    TOKENIZE = "tokenize"
    """Agent: samples to activations."""
    ENCODE = "encode"
    """Agent: activations to bytes."""
    NETWORK = "network"
    """Agent: its round trip without the worker's own time: both ways, and the waiting for a link."""
    QUEUE = "queue"
    """Worker: activations received until their forward pass begins."""
    DECODE = "decode"
    """Worker: bytes to activations, a group at a time."""
    FORWARD = "forward"
    """Worker: a group's forward pass."""
    PUBLISH = "publish"
    """Worker: outputs to bytes and to the broker's connection, a group at a time."""
    LOSS = "loss"
    """Agent: outputs to loss and output gradients."""
    BACKWARD = "backward"
    """Worker: a group's backward pass."""
    WAIT = "wait"
    """Worker: a microbatch's backward pass done until its window is committed."""
    COMMIT = "commit"
    """Worker: an optimizer step."""


AGENT_STAGES: Final = (Stage.TOKENIZE, Stage.ENCODE, Stage.NETWORK, Stage.LOSS)

TENSOR_KINDS: Final[Mapping[str, str]] = {
    "Activations": "up",
    "OutputGradients": "up",
    "Outputs": "down",
    "ActivationGradients": "down",
    "TokenizerWeights": "down",
    "Candidate": "down",
}
"""Messages that carry tensors, and their direction."""
OTHER_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "Hello": ("up",),
    "TrainingDone": ("up",),
    "Goodbye": ("up",),
    "Telemetry": ("up",),
    "AgentState": ("up", "down"),
    "Welcome": ("down",),
    "Busy": ("down",),
    "Reject": ("down",),
    "Resend": ("down",),
    "Phase": ("down",),
    "WorkerState": ("down",),
    "RunManifest": ("down",),
    "ModelChunk": ("down",),
    "Chunk": ("up", "down"),
    "MissingChunks": ("up", "down"),
    "mqtt": ("up", "down"),
}
"""Messages without tensors; `mqtt` stands for all packets that carry no message: CONNECT, PUBACK, PINGREQ."""

REFUSALS: Final = (
    "malformed",
    "oversized",
    "version",
    "content",
    "lease",
    "late",
    "state",
    "credits",
    "codec",
    "manifest",
    "topic",
    "incarnation",
    "departed",
    "busy",
    "unexpected",
)
PHASES: Final = ("waiting", "training", "evaluating", "ended")
