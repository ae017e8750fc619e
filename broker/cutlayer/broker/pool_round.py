"""What the workers of a pool tell each other in one round, and what all of them conclude from it. No I/O.

A *round* joins the replicas: each brings its *part* of the open window, all see the same parts in the same order, and
all judge them alike, so that nobody has to ask anybody for the result. After the verdict the gradient sums of the
accepted parts are added up, and every replica takes the same step.

A microbatch that two workers hold (an agent has sent it again elsewhere) is counted once: sums cannot be taken apart,
so a part with a microbatch that the ledger or a part before it already has is left out whole, and its worker asks for
its other microbatches again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType

import msgpack

from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.selection import Judgement

__all__ = ["Verdict", "WindowPart", "judge"]


_STEP = ((str,), (int,))
_JUDGEMENT = ((str,), (float, NoneType), (float, NoneType), (int,))
_FIELDS = (
    *((str,), (int,), (int,), (str,), (list,), (int,), (bytes,), (int, NoneType), (bool, NoneType), (list,)),
    *((list,), (bool,)),
)
"""What the fields of a part are in MessagePack."""


@dataclass(frozen=True, slots=True)
class WindowPart:
    """What one worker brings to a round.

    Attributes:
        worker: Its name.
        window: Number of its open window.
        version: Version of its weights.
        digest: Digest of its weights; empty for one that has only just taken them over.
        steps: (agent, step) of each microbatch in its gradient sums.
        num_samples: Samples of those.
        present: One byte for each trainable parameter: whether a sample has reached it.
        planned_samples: Samples that all agents it knows will have trained on; None for a service.
        is_due: Whether it finds that the window may close; None for a worker that joins and has no say.
        waits_for: In synchronous mode the agents without which the window must not close.
        judged: What the agents that it has heard say of candidates (`selection.py`).
        is_over: Whether it finds that training has come to its end, where the weights to end with are chosen.
    """

    worker: str
    window: int
    version: int
    digest: str = ""
    steps: tuple[tuple[str, int], ...] = ()
    num_samples: int = 0
    present: bytes = b""
    planned_samples: int | None = None
    is_due: bool | None = None
    waits_for: tuple[str, ...] = ()
    judged: tuple[Judgement, ...] = ()
    is_over: bool = False

    def to_bytes(self) -> bytes:
        """Serialize for the other replicas: MessagePack, the fields in order."""
        steps = [list(step) for step in self.steps]
        packed: bytes = msgpack.packb(
            [
                self.worker,
                self.window,
                self.version,
                self.digest,
                steps,
                self.num_samples,
                self.present,
                self.planned_samples,
                self.is_due,
                list(self.waits_for),
                [[each.name, each.value, each.loss, each.num_samples] for each in self.judged],
                self.is_over,
            ]
        )
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> WindowPart:
        """Read what `to_bytes` wrote.

        Raises:
            MalformedMessage: When the bytes are something else: another version of this program, most likely.
        """
        try:
            fields = msgpack.unpackb(data)
            _check(fields, _FIELDS)
            for step in fields[4]:
                _check(step, _STEP)
            _check(fields[9], [(str,)] * len(fields[9]))
            for judgement in fields[10]:
                _check(judgement, _JUDGEMENT)
            worker, window, version, digest, steps, num_samples, present, planned, is_due, waits_for = fields[:10]
            return cls(
                *(worker, window, version, digest),
                steps=tuple((agent, step) for agent, step in steps),
                num_samples=num_samples,
                present=present,
                planned_samples=planned,
                is_due=is_due,
                waits_for=tuple(waits_for),
                judged=tuple(Judgement(*judgement) for judgement in fields[10]),
                is_over=fields[11],
            )
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise MalformedMessage(f"part of a window: {error}") from None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a round decides, the same at each replica.

    Attributes:
        commits: Whether the window closes. Otherwise everybody keeps what it has.
        accepted: Workers whose gradient sums are in it.
        rejected: Workers whose part holds a microbatch that is committed already, in a part before, or in it twice.
        differing: Workers whose weights are not the first one's.
        steps: (agent, step) of all microbatches in the window.
        num_samples: Samples of those.
        planned_samples: Samples that the run will have trained on, by the worker that knows of most.
        present: Parameters that a sample has reached.
        judged: What any of them says of candidates, in the order of the parts.
        is_over: Whether training has come to its end: somebody finds so, and nobody holds a microbatch.
    """

    commits: bool
    accepted: tuple[str, ...]
    rejected: tuple[str, ...]
    differing: tuple[str, ...]
    steps: tuple[tuple[str, int], ...]
    num_samples: int
    planned_samples: int | None
    present: bytes
    judged: tuple[Judgement, ...] = ()
    is_over: bool = False


def judge(parts: Sequence[WindowPart], ledger: Ledger, *, is_synchronous: bool) -> Verdict:
    """Decide about a window.

    Args:
        parts: One of each replica, in the same order everywhere.
        ledger: The steps committed before; the same everywhere.
        is_synchronous: Whether all have to find the window due, and no agent that one of them waits for, or whose part
            was left out, may be missing from it; else it suffices that one finds it due.
    """
    digests = [part.digest for part in parts if part.digest]
    differing = tuple(part.worker for part in parts if part.digest and part.digest != digests[0])
    held: set[tuple[str, int]] = set()
    accepted: list[WindowPart] = []
    rejected: list[WindowPart] = []
    for part in parts:
        steps = set(part.steps)
        is_known = any(step in held or step[1] in ledger.of(step[0]) for step in steps)
        if is_known or len(steps) < len(part.steps):
            rejected.append(part)
            continue
        accepted.append(part)
        held.update(steps)
    votes = [part.is_due for part in parts if part.is_due is not None]
    is_due = any(votes)
    if is_synchronous:
        # Whoever announced a part may not have come to this round, and a part may have been left out.
        wanted = {agent for part in parts for agent in part.waits_for}
        wanted.update(agent for part in rejected for agent, _ in part.steps)
        is_due = all(votes) and wanted <= {agent for agent, _ in held}
    num_samples = sum(part.num_samples for part in accepted)
    plans = [part.planned_samples for part in parts if part.is_due is not None]
    known = [plan for plan in plans if plan is not None]
    return Verdict(
        commits=bool(votes) and is_due and num_samples > 0 and not differing,
        accepted=tuple(part.worker for part in accepted),
        rejected=tuple(part.worker for part in rejected),
        differing=differing,
        steps=tuple(step for part in accepted for step in part.steps),
        num_samples=num_samples,
        planned_samples=max(known) if known and len(known) == len(plans) else None,
        present=_any_of([part.present for part in accepted]),
        judged=tuple(judgement for part in parts for judgement in part.judged),
        is_over=any(part.is_over for part in parts) and not any(part.steps for part in parts),
    )


def _check(values: Sequence[object], types: Sequence[tuple[type, ...]]) -> None:
    for value, allowed in zip(values, types, strict=True):
        # A bool is an int to `isinstance`, and no number here is negative.
        if type(value) not in allowed or (type(value) is int and value < 0):
            raise ValueError(f"{value!r:.80} is not {' or '.join(one.__name__ for one in allowed)}")


def _any_of(masks: Sequence[bytes]) -> bytes:
    given = [mask for mask in masks if mask]
    if not given:
        return b""
    merged = 0
    for mask in given:
        merged |= int.from_bytes(mask, "big")
    return merged.to_bytes(max(len(mask) for mask in given), "big")
