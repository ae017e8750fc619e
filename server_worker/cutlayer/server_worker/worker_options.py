"""How a worker behaves, chosen once at the edge of the program."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WorkerOptions"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker behaves.

    Attributes:
        connect_timeout_s: How long the first connection is tried.
        claim_s: How long it looks for another worker that already serves a run here.
        checkpoint_every_windows: Windows from one checkpoint to the next.
        drain_s: How long a worker that is stopped goes on with what agents have outstanding at it.
        part_s: How long a worker of a pool waits at the end of the run for the last round.
        asks_broker: Whether it asks the broker for what that tells of itself.
    """

    connect_timeout_s: float = 20.0
    claim_s: float = 0.5
    checkpoint_every_windows: int = 50
    drain_s: float = 10.0
    part_s: float = 10.0
    asks_broker: bool = False
