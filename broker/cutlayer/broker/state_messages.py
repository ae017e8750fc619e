"""The messages in which agents and workers say how they stand now: whether they are there, and what a pool has open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cutlayer.broker.lease_messages import RunPhase
from cutlayer.broker.wire import U32, binary, choice, flag, many, text, uint, wire
from cutlayer.broker.wire_limits import MAX_DETAIL, MAX_LIST, MAX_NAME, MAX_TOPIC


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
