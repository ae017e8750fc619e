"""A pool of workers as an agent may expect it, in a few lines: leases, credits, shared windows, and every accident.

All workers commit the same windows, each a little later than the first. A window that only workers have seen which
are gone is gone with them: its steps, of which the agent may have been told, are to be done again.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from cutlayer.broker.ledger import StepRanges
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    Goodbye,
    Hello,
    Message,
    Mode,
    NegotiatedCodecs,
    OutputGradients,
    Outputs,
    Phase,
    Resend,
    ResendReason,
    RunPhase,
    TrainingDone,
    Welcome,
    WorkerState,
)
from support.conversation import zeros

__all__ = ["CREDITS", "ModelPool", "ModelWorker"]

CREDITS = 2
EXACT = NegotiatedCodecs("identity", "identity", "identity", "identity")


@dataclass
class ModelWorker:
    """One worker: what it holds and has committed.

    Attributes:
        held: The training steps that it holds, each with whether its gradients are there.
        windows: Windows that it has committed, of the pool's.
    """

    name: str
    incarnation: int = 1
    lease: int | None = None
    phase: RunPhase = RunPhase.TRAINING
    held: dict[int, bool] = field(default_factory=dict)
    windows: int = 0
    is_online: bool = True
    is_draining: bool = False
    is_mute: bool = False


class ModelPool:
    """Workers that share windows, and one agent's letters to and from them.

    Args:
        names: The workers.
        digest: The run.
        total_steps: The agent's training steps.
        rng: Decides.
    """

    def __init__(self, names: Iterable[str], digest: bytes, total_steps: int, rng: random.Random) -> None:
        self.workers = {name: ModelWorker(name) for name in names}
        self.windows: list[set[int]] = []
        self.to_agent: list[Message] = []
        self.total_steps = total_steps
        self._digest = digest
        self._rng = rng
        self._num_leases = 100
        for worker in self.workers.values():
            self._tell_state(worker)

    # What it has done -----------------------------------------------------------------------------------------

    def ledger(self, worker: ModelWorker) -> set[int]:
        """Return the steps that a worker has committed."""
        return set().union(*self.windows[: worker.windows])

    def online(self) -> list[ModelWorker]:
        """Return the workers that are there."""
        return [worker for worker in self.workers.values() if worker.is_online]

    # What happens to it ---------------------------------------------------------------------------------------

    def work(self) -> None:
        """Do one thing somewhere: a forward pass, a window, or a window that another has already committed."""
        worker = self._rng.choice(self.online())
        if worker.is_mute:
            return
        if worker.windows < len(self.windows):
            self._commit(worker)
            return
        waiting = [step for step, has_gradients in worker.held.items() if not has_gradients]
        if waiting and self._rng.random() < 0.7:
            self._tell(worker, Outputs(self._lease(worker), self._rng.choice(waiting), Mode.TRAIN, 0, 0.0, zeros(4, 2)))
        elif all(other.windows == len(self.windows) for other in self.online()):
            ready = {step for other in self.online() for step, has_gradients in other.held.items() if has_gradients}
            if ready:
                self.windows.append(ready)
                self._commit(worker)

    def crash(self, worker: ModelWorker) -> None:
        """Let a worker vanish with what it holds, and with the window that it alone has committed."""
        worker.is_online = False
        worker.held.clear()
        worker.lease = None
        self._tell_state(worker)
        seen = max((other.windows for other in self.online()), default=worker.windows)
        del self.windows[seen:]

    def start(self, worker: ModelWorker) -> None:
        """Start a worker anew; it has the others' weights, or, alone, a checkpoint's."""
        others = [other.windows for other in self.online()]
        worker.windows = max(others) if others else self._rng.randint(0, len(self.windows))
        if not others:
            del self.windows[worker.windows :]
        worker.incarnation += 1
        worker.is_online, worker.is_draining, worker.is_mute = True, False, False
        worker.phase = RunPhase.TRAINING
        self._tell_state(worker)

    def drain(self, worker: ModelWorker) -> None:
        """Let a worker take nothing new; it goes when it holds nothing (`leave_drained`)."""
        worker.is_draining = True
        self._tell_state(worker)

    def leave_drained(self) -> None:
        """Let the drained workers go, who tell everybody what they have committed."""
        for worker in self.online():
            if worker.is_draining and not worker.held and worker.windows <= min(w.windows for w in self.online()):
                self.crash(worker)

    # What the agent says --------------------------------------------------------------------------------------

    def receive(self, name: str, message: Message) -> None:
        """Take a message to a worker."""
        worker = self.workers[name]
        if not worker.is_online or worker.is_mute:
            return
        if isinstance(message, Hello):
            if worker.lease is None and not worker.is_draining:
                self._num_leases += 1
                worker.lease = self._num_leases
            if worker.lease is not None:
                self._welcome(worker)
            return
        lease = getattr(message, "lease", None)
        if worker.lease is None or lease != worker.lease:
            if isinstance(message, Activations | OutputGradients):
                mode = message.mode if isinstance(message, Activations) else Mode.TRAIN
                self.to_agent.append(Resend(message.lease, message.step, mode, ResendReason.LEASE))
            elif isinstance(message, Goodbye):
                self.to_agent.append(Phase(message.lease, RunPhase.ENDED, "goodbye"))
            return
        self._under_lease(worker, message)

    def _under_lease(self, worker: ModelWorker, message: Message) -> None:
        lease = self._lease(worker)
        match message:
            case Activations(mode=Mode.EVAL):
                self._tell(worker, Outputs(lease, message.step, Mode.EVAL, 0, 0.0, zeros(4, 2)))
            case Activations() | OutputGradients() if message.step in self.ledger(worker):
                self._tell(worker, ActivationGradients(lease, message.step, worker.windows, 0.0, ()))
            case Activations():
                abandoned = [step for step, has_gradients in worker.held.items() if not has_gradients]
                if message.step not in worker.held and len(worker.held) >= CREDITS and abandoned:
                    del worker.held[abandoned[0]]  # the agent keeps to its credits: it has taken something back
                if len(worker.held) < CREDITS:
                    worker.held.setdefault(message.step, False)
            case OutputGradients() if message.step in worker.held:
                worker.held[message.step] = True
            case OutputGradients():
                self._tell(worker, Resend(lease, message.step, Mode.TRAIN, ResendReason.UNKNOWN))
            case TrainingDone():
                if len(self.ledger(worker)) < self.total_steps:
                    self._welcome(worker)
                else:
                    worker.phase = RunPhase.EVALUATING
                    self._tell(worker, Phase(lease, RunPhase.EVALUATING, ""))
            case Goodbye():
                self._tell(worker, Phase(lease, RunPhase.ENDED, "goodbye"))
                worker.lease = None

    # Inside ---------------------------------------------------------------------------------------------------

    def _commit(self, worker: ModelWorker) -> None:
        steps = self.windows[worker.windows]
        worker.windows += 1
        for step in steps & set(worker.held):
            del worker.held[step]
            if worker.lease is not None:
                self._tell(worker, ActivationGradients(worker.lease, step, worker.windows, 0.0, ()))

    def _welcome(self, worker: ModelWorker) -> None:
        ranges = StepRanges()
        for step in self.ledger(worker):
            ranges.add(step)
        lease, phase = self._lease(worker), worker.phase
        self._tell(worker, Welcome(worker.name, 1, lease, CREDITS, EXACT, tuple(ranges), phase, 60.0))

    def _tell(self, worker: ModelWorker, message: Message) -> None:
        if not worker.is_mute:
            self.to_agent.append(message)

    def _tell_state(self, worker: ModelWorker) -> None:
        state = WorkerState(
            worker.is_online,
            worker.name,
            worker.incarnation,
            self._digest,
            worker.phase,
            agents=0,
            version=worker.windows,
            reason="",
            is_draining=worker.is_draining,
        )
        self.to_agent.append(state)

    def _lease(self, worker: ModelWorker) -> int:
        assert worker.lease is not None
        return worker.lease
