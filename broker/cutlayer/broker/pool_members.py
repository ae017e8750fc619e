"""What a worker knows of the other workers of its pool: who serves, and what each holds of the open window.

It learns this from their retained states and from their `WindowState`s, which are repeated, since any may be lost.
It decides only when a round is worth starting; who takes part in it, and what is committed, the round itself finds out.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.broker.messages import RunPhase, WindowState, WorkerState

__all__ = ["OthersInWindow", "PoolMembers"]

MAX_MEMBERS = 1_024
"""Workers that one knows of; their names come from whoever may publish below `cutlayer/workers`."""


@dataclass(frozen=True, slots=True)
class OthersInWindow:
    """What the other workers hold of the open window.

    Attributes:
        num_samples: Their samples.
        agents: In synchronous mode, whose.
        ask_to_close: Whether one of them waits for a round now.
        num_workers: How many others serve the run.
    """

    num_samples: int = 0
    agents: frozenset[str] = frozenset()
    ask_to_close: bool = False
    num_workers: int = 0


@dataclass(slots=True)
class _Member:
    incarnation: int
    is_online: bool = False
    manifest_digest: bytes = b""
    agents: int = 0
    phase: RunPhase = RunPhase.WAITING
    reason: str = ""
    window: WindowState | None = None


class PoolMembers:
    """The other workers of a pool.

    Args:
        worker: This worker's name.
        manifest_digest: Digest of the run; workers of other runs are not counted.

    Attributes:
        generation: Changes of membership so far, from the last round.
    """

    def __init__(self, worker: str, manifest_digest: bytes) -> None:
        self.generation = 0
        self._worker = worker
        self.manifest_digest = manifest_digest
        self._members: dict[str, _Member] = {}

    def heard_state(self, state: WorkerState) -> None:
        """Take notice of a worker's retained state."""
        if state.worker == self._worker:
            return
        if not state.online:
            known = self._members.get(state.worker)
            if known is not None and state.incarnation >= known.incarnation:
                known.is_online, known.window = False, None
                known.phase, known.reason = state.phase, state.reason
            return
        member = self._member(state.worker, state.incarnation)
        if member is not None:
            # Of which run it is may not matter before this worker has taken over the pool's.
            member.is_online, member.manifest_digest = True, state.manifest_digest
            member.phase, member.reason, member.agents = state.phase, state.reason, state.agents

    def heard_window(self, state: WindowState) -> None:
        """Take notice of what a worker holds."""
        if state.worker != self._worker and (member := self._member(state.worker, state.incarnation)) is not None:
            member.window = state

    def _member(self, worker: str, incarnation: int) -> _Member | None:
        member = self._members.get(worker)
        if member is None or incarnation > member.incarnation:
            if member is None and len(self._members) >= MAX_MEMBERS and not self._forget_one():
                return None
            member = self._members[worker] = _Member(incarnation)
        return member if incarnation == member.incarnation else None

    def _forget_one(self) -> bool:
        gone = next((name for name, member in self._members.items() if not member.is_online), None)
        return gone is not None and self._members.pop(gone) is not None

    def in_window(self, window: int) -> OthersInWindow:
        """Return what the others hold of a window.

        A worker whose window is a later one has seen a commit that this one has missed: the next round mends that, so
        it counts as waiting for one, as does a worker that joins.
        """
        states = [member.window for member in self._members.values() if member.window is not None]
        here = [state for state in states if state.window == window]
        return OthersInWindow(
            sum(state.num_samples for state in here),
            frozenset(agent for state in here for agent in state.agents),
            any(state.closes for state in states) or any(state.window > window for state in states),
            self.num_serving,
        )

    @property
    def num_serving(self) -> int:
        """Other workers that serve the run."""
        return sum(member.is_online for member in self._of_the_run())

    def serving(self) -> tuple[str, ...]:
        """Return the names of the other workers that serve the run."""
        return tuple(name for name, member in self._members.items() if member.is_online and self._is_of_the_run(member))

    @property
    def num_online(self) -> int:
        """Other workers that serve this run or another one."""
        return sum(member.is_online for member in self._members.values())

    @property
    def num_training_agents(self) -> int:
        """Leases of the other worker that has the most of them and still trains: agents may not have come to all."""
        training = (member for member in self._of_the_run() if member.is_online)
        return max((member.agents for member in training if member.phase is RunPhase.TRAINING), default=0)

    def furthest_phase(self) -> tuple[RunPhase, str]:
        """Return the furthest phase that any of the others has reached, with its reason."""
        order = tuple(RunPhase)
        phases = [(member.phase, member.reason) for member in self._of_the_run()]
        return max(phases, key=lambda entry: order.index(entry[0]), default=(RunPhase.WAITING, ""))

    @property
    def has_gone_on(self) -> bool:
        """Whether another worker that serves the run does not train any more."""
        trained = (RunPhase.EVALUATING, RunPhase.ENDED)
        return any(member.is_online and member.phase in trained for member in self._of_the_run())

    def _of_the_run(self) -> list[_Member]:
        return [member for member in self._members.values() if self._is_of_the_run(member)]

    def _is_of_the_run(self, member: _Member) -> bool:
        return member.manifest_digest == self.manifest_digest

    def round_ended(self, generation: int, window: int) -> None:
        """Forget what the others held of the round's window: they say it anew.

        What one of them already holds of a later window stays known: it has heard of the round's end before this
        worker has, and says it again only when its next part is there, or after a second.

        Args:
            generation: Changes of membership so far.
            window: Number of the window that the round was about.
        """
        self.generation = generation
        for member in self._members.values():
            if member.window is not None and member.window.window <= window:
                member.window = None
