"""What a driver may read of its worker's session for its figures. It changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.broker.work import Key
from cutlayer.broker.worker_run import WorkerRun

__all__ = ["WindowMember", "WorkerView"]


@dataclass(frozen=True, slots=True)
class WindowMember:
    """A microbatch of the open window.

    Attributes:
        num_samples: Samples B.
        version: Version of the weights at its forward pass.
        since: When its backward pass was done.
    """

    num_samples: int
    version: int
    since: float


class WorkerView:
    """Figures of one worker's session.

    Args:
        run: What the session's parts share.
    """

    def __init__(self, run: WorkerRun) -> None:
        self._run = run

    @property
    def credits_granted(self) -> int:
        """Microbatches that agents may have outstanding here."""
        return self._run.limits.credits * len(self._run.leases)

    @property
    def credits_used(self) -> int:
        """Microbatches that are here."""
        return len(self._run.in_hand.exchanges)

    @property
    def open_samples(self) -> int:
        """Samples in the open window."""
        return self._run.in_hand.window_samples

    @property
    def wanted_samples(self) -> int:
        """Samples that a window wants: in synchronous mode a microbatch of each agent that trains."""
        manifest = self._run.manifest
        if manifest.window.mode == "synchronous":
            return manifest.microbatch_samples * len(self._run.leases.training())
        return manifest.window.samples

    @property
    def num_workers(self) -> int:
        """Workers of the run that are online, this one included."""
        return 1 + (0 if self._run.members is None else self._run.members.num_serving)

    @property
    def is_first(self) -> bool:
        """Whether no other worker of the run that is online has a lower name: one of them speaks for all."""
        return self._run.is_first

    def received_at(self, key: Key) -> float | None:
        """Return when the last message of a microbatch came; None when it is not here."""
        exchange = self._run.in_hand.exchanges.get(key)
        return None if exchange is None else exchange.received_at

    def window_members(self) -> tuple[WindowMember, ...]:
        """Return the microbatches of the open window."""
        members = []
        for key in self._run.in_hand.in_window:
            exchange = self._run.in_hand.exchanges[key]
            assert exchange.outputs is not None, "what is in the window has been forward"
            assert exchange.in_window_at is not None, "and backward"
            members.append(WindowMember(exchange.num_samples, exchange.outputs.version, exchange.in_window_at))
        return tuple(members)
