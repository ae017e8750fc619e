"""The seam between a worker and its pool: one round at a time, begun and then asked after.

A round joins the replicas of one encoder (`cutlayer.broker.pool_round`): they find out who is there, one that is behind
takes over the weights of one that is not, each sees all parts of the window and judges them, and the accepted gradient
sums are added up. `TorchftPool` is the real thing; `MemoryPool` its twin for simulations and tests.

A round never blocks its worker: between `begin` and the result messages are handled and forward passes run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cutlayer.broker.ledger import Ledger
from cutlayer.broker.pool_round import Verdict, WindowPart, judge
from cutlayer.server_worker.checkpoint import Checkpoint

__all__ = ["Pool", "RoundResult", "RoundTask", "flatten", "judge_parts", "unflatten"]


@dataclass(frozen=True, slots=True)
class RoundTask:
    """What a worker brings to a round. Nothing of it changes until the round has ended.

    Attributes:
        part: What it holds of the window.
        sums: Its gradient sums, one for each trainable parameter.
        ledger: Its ledger.
        is_synchronous: Whether windows are synchronous.
        snapshot: Makes a checkpoint of it, for a replica that is behind. Called in another thread, at most once.
    """

    part: WindowPart
    sums: Sequence[Tensor]
    ledger: Ledger
    is_synchronous: bool
    snapshot: Callable[[], Checkpoint]


@dataclass(frozen=True, slots=True)
class RoundResult:
    """How a round ended.

    Attributes:
        generation: Counts the pool's changes of membership.
        workers: Who took part.
        verdict: What the round decided; None when it failed.
        sums: Gradient sums over all accepted parts, when the window closes; else None.
        taken_over: The state of another replica, when this one was behind and has to continue from it; else None.
        failure: Why the round failed; empty when it did not.
    """

    generation: int
    workers: tuple[str, ...] = ()
    verdict: Verdict | None = None
    sums: Sequence[Tensor] | None = None
    taken_over: Checkpoint | None = None
    failure: str = ""


class Pool(Protocol):
    """The replicas that train one encoder, this worker among them.

    Attributes:
        poll_s: Seconds from one look for a round's result to the next.
    """

    poll_s: float

    def start_from(self, step: int) -> None:
        """Say before the first round how far this worker is; whoever is furthest hands its state to the others.

        Args:
            step: Windows that it has committed, from a checkpoint; 0 for one that takes over whatever the others have.
        """

    def fall_behind(self) -> None:
        """Have this worker take over the others' state in their next round: its own is not theirs."""

    def begin(self, task: RoundTask) -> None:
        """Start a round; there is at most one at a time."""

    def poll(self) -> RoundResult | None:
        """Return the result of the round once it has ended, once; None before and without one."""

    def close(self) -> None:
        """Leave the pool."""


def judge_parts(parts: Sequence[WindowPart], task: RoundTask, taken_over: Checkpoint | None) -> Verdict:
    """Judge a round with the ledger that all replicas share: for one that was behind, the one it takes over."""
    ledger = task.ledger if taken_over is None else Ledger.from_bytes(taken_over.ledger)
    return judge(parts, ledger, is_synchronous=task.is_synchronous)


def flatten(sums: Sequence[Tensor]) -> Tensor:
    """Return a copy of all sums in one tensor (P)."""
    return torch.cat([total.detach().reshape(-1) for total in sums])


def unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the parts of a tensor (P), in the shapes of others."""
    sizes = [total.numel() for total in like]
    return [piece.view(total.shape) for piece, total in zip(torch.split(flat, sizes), like, strict=True)]
