"""A worker's session at a desk where a test plays the agents, one message at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cutlayer.broker.actions import Publish, Refused, WorkerAction
from cutlayer.broker.messages import (
    Activations,
    AgentState,
    EncodedTensor,
    Goodbye,
    GoodbyeReason,
    Hello,
    Message,
    Mode,
    OutputGradients,
    RunPhase,
    TrainingDone,
)
from cutlayer.broker.worker_session import WorkerSession
from support.conversation import (
    BYTE_STAGES,
    CLASSES,
    CODECS,
    MICROBATCH,
    Arithmetic,
    counters,
    image_tokens,
    make_worker,
    small_manifest,
    zeros,
)

__all__ = ["INBOX", "Desk", "absent_since", "kinds", "label_of", "messages", "phase_of"]

INBOX = "cutlayer/workers/w0/inbox/a"
AnyMessage = TypeVar("AnyMessage", bound=Message)


class Desk:
    """A session whose agents are played by the test."""

    def __init__(self, session: WorkerSession | None = None, **window: Any) -> None:
        self.manifest = session.manifest if session else small_manifest(epochs=2, **window)
        self.session = session or make_worker(self.manifest)
        self.arithmetic = Arithmetic(self.session)
        self.now = 0.0
        self.digest = bytes.fromhex(self.manifest.digest())
        self.session.connected()

    def hello(self, agent: str = "a", incarnation: int = 1, num_samples: int = 8, **changes: Any) -> list[WorkerAction]:
        hello = Hello(agent, incarnation, self.digest, num_samples, CODECS, BYTE_STAGES, "v1")
        hello = replace(hello, **changes)
        return self.session.receive(f"cutlayer/workers/w0/inbox/{hello.agent}", hello, self.now)

    def lease(self, agent: str = "a") -> int:
        lease = self.session.leases.of(agent)
        assert lease is not None
        return lease.lease

    def join(self, agent: str = "a", incarnation: int = 1, num_samples: int = 8) -> int:
        self.hello(agent, incarnation, num_samples)
        return self.lease(agent)

    def activations(
        self,
        agent: str = "a",
        step: int = 0,
        mode: Mode = Mode.TRAIN,
        num_samples: int = MICROBATCH,
        lease: int | None = None,
        **changes: Any,
    ) -> list[WorkerAction]:
        number = self.lease(agent) if lease is None else lease
        message = Activations(number, step, mode, num_samples, image_tokens(num_samples))
        return self.session.receive(f"{agent}/up/w0/activations", replace(message, **changes), self.now)

    def gradients(
        self,
        agent: str = "a",
        step: int = 0,
        version: int | None = None,
        gradients: EncodedTensor | None = None,
        lease: int | None = None,
    ) -> list[WorkerAction]:
        number = self.lease(agent) if lease is None else lease
        used = self.session.version if version is None else version
        message = OutputGradients(number, step, used, gradients or zeros(MICROBATCH, len(CLASSES)))
        return self.session.receive(f"{agent}/up/w0/gradients", message, self.now)

    def done(self, agent: str = "a", lease: int | None = None, *, committed: bool = True) -> list[WorkerAction]:
        held = self.session.leases.of(agent)
        for step in range(held.total_steps if committed and held is not None else 0):
            self.session.ledger.add(agent, step)
        message = TrainingDone(self.lease(agent) if lease is None else lease)
        return self.session.receive(f"cutlayer/workers/w0/inbox/{agent}", message, self.now)

    def goodbye(
        self,
        agent: str = "a",
        reason: GoodbyeReason = GoodbyeReason.COMPLETED,
        lease: int | None = None,
        incarnation: int = 1,
    ) -> list[WorkerAction]:
        number = self.lease(agent) if lease is None else lease
        goodbye = Goodbye(number, reason, counters(incarnation))
        return self.session.receive(f"cutlayer/workers/w0/inbox/{agent}", goodbye, self.now)

    def offline(self, agent: str = "a", incarnation: int = 1) -> list[WorkerAction]:
        return self.session.receive(f"{agent}/state", AgentState(False, incarnation), self.now)

    def compute(self) -> list[WorkerAction]:
        """Do all work that there is; return what the session did about it."""
        actions: list[WorkerAction] = []
        while (some := self.arithmetic.compute(self.now)) is not None:
            actions += some
        return actions

    def train(self, agent: str = "a", step: int = 0) -> list[WorkerAction]:
        """Bring a step into a window."""
        self.activations(agent, step)
        self.compute()
        self.gradients(agent, step)
        return self.compute()


def messages(actions: Sequence[WorkerAction], kind: type[AnyMessage]) -> list[AnyMessage]:
    """Return the messages of a kind that are published."""
    return [action.message for action in actions if isinstance(action, Publish) and isinstance(action.message, kind)]


def kinds(actions: Sequence[WorkerAction]) -> list[str]:
    """Return what is done, by name; messages by theirs."""
    return [type(action.message if isinstance(action, Publish) else action).__name__ for action in actions]


def label_of(actions: Sequence[WorkerAction]) -> str:
    """Return the label of the only refusal."""
    (label,) = [action.label for action in actions if isinstance(action, Refused)]
    return label


def phase_of(desk: Desk) -> RunPhase:
    """Return where the run stands."""
    return desk.session.phase


def absent_since(desk: Desk, agent: str = "a") -> float | None:
    """Return when an agent with a lease vanished."""
    lease = desk.session.leases.of(agent)
    assert lease is not None
    return lease.absent_since
