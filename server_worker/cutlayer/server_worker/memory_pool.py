"""A pool in memory: the twin of `TorchftPool` for simulations in virtual time and for tests.

Its members join and die as processes do. A round ends when everybody who is alive has begun it, or `join_timeout_s`
after the first has, without those who have not: what `torchft_lighthouse` does with heartbeats and a join timeout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from cutlayer.broker.pool_round import WindowPart
from cutlayer.server_worker.checkpoint import Checkpoint
from cutlayer.server_worker.pool import RoundResult, RoundTask, flatten, judge_parts, unflatten

__all__ = ["MemoryLighthouse", "MemoryPool"]


@dataclass(slots=True)
class _Seat:
    """One member: a process, which never comes back under the same seat."""

    name: str
    step: int
    task: RoundTask | None = None
    begun_at: float = 0.0
    result: RoundResult | None = None
    number: int = 0


class MemoryLighthouse:
    """Where the members of a pool meet.

    Args:
        clock: Seconds.
        join_timeout_s: How long a round waits for members that are alive and have not begun it.
        fails: Says whether a member loses its connection to the others in the round that is about to end, before it
            has the sums: it commits nothing, and is behind in the next.

    Attributes:
        is_up: Whether rounds can end.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        join_timeout_s: float = 60.0,
        fails: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.is_up = True
        self.clock = clock
        self._join_timeout_s = join_timeout_s
        self._fails = fails
        self._seats: list[_Seat] = []
        self._generation = 0
        self._seated: tuple[int, ...] = ()
        self._num_seats = 0

    def join(self, name: str, step: int) -> _Seat:
        """Take a seat. `step`: windows committed, by which the furthest is known."""
        self._num_seats += 1
        seat = _Seat(name, step, number=self._num_seats)
        self._seats.append(seat)
        return seat

    def leave(self, seat: _Seat) -> None:
        """Give a seat up, on purpose or by dying."""
        if seat in self._seats:
            self._seats.remove(seat)
        self.settle()

    def settle(self) -> None:
        """End the round when its time has come."""
        begun = [seat for seat in self._seats if seat.task is not None]
        if not begun or not self.is_up:
            return
        is_late = self.clock() >= min(seat.begun_at for seat in begun) + self._join_timeout_s
        if len(begun) < len(self._seats) and not is_late:
            return
        begun.sort(key=lambda seat: seat.name)
        seated = tuple(seat.number for seat in begun)
        self._generation += seated != self._seated
        self._seated = seated
        self._end(begun)

    def _end(self, seats: list[_Seat]) -> None:
        furthest = max(seats, key=lambda seat: (seat.step, [-ord(letter) for letter in seat.name]))
        state: Checkpoint | None = None
        healed: set[str] = set()
        parts: list[WindowPart] = []
        for seat in seats:
            assert seat.task is not None
            if seat.step < furthest.step or (seat.step == 0 and seat is not furthest):
                if state is None:
                    assert furthest.task is not None
                    state = furthest.task.snapshot()
                healed.add(seat.name)
                parts.append(WindowPart(seat.name, seat.task.part.window, seat.task.part.version))
            else:
                parts.append(seat.task.part)
        assert furthest.task is not None
        step = furthest.step
        verdict = judge_parts(parts, furthest.task, None)
        flat = None
        if verdict.commits:
            accepted = [seat.task for seat in seats if seat.task and seat.name in verdict.accepted]
            sums = [flatten(task.sums) for task in accepted if task.part.worker not in healed]
            flat = torch.stack(sums).sum(0)
        for seat in seats:
            assert seat.task is not None
            if len(seats) > 1 and self._fails(seat.name):
                seat.result = RoundResult(self._generation, failure="the connection to the other replicas broke")
            else:
                seat.step = step + 1
                seat.result = RoundResult(
                    self._generation,
                    tuple(part.worker for part in parts),
                    verdict,
                    None if flat is None else unflatten(flat.clone(), seat.task.sums),
                    state if seat.name in healed else None,
                )
            seat.task = None


@dataclass(slots=True)
class MemoryPool:
    """One member of a pool in memory.

    Args:
        lighthouse: Where it meets the others.
        name: The worker's name.
    """

    lighthouse: MemoryLighthouse
    name: str
    poll_s: float = 0.05
    _step: int = field(default=0, init=False)
    _seat: _Seat | None = field(default=None, init=False)

    def start_from(self, step: int) -> None:
        """Say how far this worker is."""
        self._step = step

    def fall_behind(self) -> None:
        """Take over the others' state in their next round."""
        assert self._seat is not None, "only in a round it is found out"
        self._seat.step -= 1

    def begin(self, task: RoundTask) -> None:
        """Start a round."""
        if self._seat is None:
            self._seat = self.lighthouse.join(self.name, self._step)
        assert self._seat.task is None, "one round at a time"
        self._seat.task, self._seat.begun_at = task, self.lighthouse.clock()
        self.lighthouse.settle()

    def poll(self) -> RoundResult | None:
        """Return the result of the round, once."""
        if self._seat is None:
            return None
        self.lighthouse.settle()
        result, self._seat.result = self._seat.result, None
        return result

    def close(self) -> None:
        """Leave the pool, as a killed process does."""
        if self._seat is not None:
            self.lighthouse.leave(self._seat)
            self._seat = None
