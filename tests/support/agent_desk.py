"""An agent's session at a desk where a test plays the workers, one message at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cutlayer.broker.actions import AgentAction, Publish
from cutlayer.broker.agent_session import AgentSession, Deadlines
from cutlayer.broker.agent_workers import KnownWorker
from cutlayer.broker.messages import (
    ActivationGradients,
    Message,
    Mode,
    NegotiatedCodecs,
    Outputs,
    Phase,
    Resend,
    ResendReason,
    RunPhase,
    Welcome,
    WorkerState,
)
from cutlayer.broker.states import ExchangeState
from cutlayer.broker.topics import AgentTopics
from support.conversation import BYTE_STAGES, CODECS, image_tokens, zeros

__all__ = ["DEADLINES", "DIGEST", "IDENTITY", "INCARNATION", "Desk", "kinds", "messages"]

INCARNATION = 1_000
DIGEST = bytes(range(32))
IDENTITY = NegotiatedCodecs("identity", "identity", "identity", "identity")
DEADLINES = Deadlines(hello_s=2.0, step_s=5.0, longest_s=60.0, claim_hello_s=0.0)
AnyMessage = TypeVar("AnyMessage", bound=Message)


class Desk:
    """A session whose workers are played by the test."""

    def __init__(
        self,
        *workers: str,
        is_leased: bool = True,
        credits: int = 2,  # noqa: A002
        deadlines: Deadlines = DEADLINES,
        is_synchronous: bool = False,
    ) -> None:
        self.now = 0.0
        self.session = AgentSession(AgentTopics("clinic/07"), INCARNATION, software="v1", deadlines=deadlines)
        self.leases: dict[str, int] = {}
        self.session.connected(self.now)
        self.session.ready(DIGEST, 40, CODECS, BYTE_STAGES, self.now, is_synchronous=is_synchronous)
        for worker in workers:
            self.online(worker)
            if is_leased:
                self.welcome(worker, credits=credits)

    def receive(self, message: Message) -> list[AgentAction]:
        return self.session.receive(message, self.now)

    def online(self, worker: str = "w0", *, incarnation: int = 1, **changes: Any) -> list[AgentAction]:
        """A worker's state comes."""
        state = WorkerState(True, worker, incarnation, DIGEST, RunPhase.TRAINING, agents=0, version=0, reason="")
        return self.receive(replace(state, **changes))

    def welcome(
        self,
        worker: str = "w0",
        lease: int | None = None,
        *,
        credits: int = 2,  # noqa: A002
        committed: tuple[tuple[int, int], ...] = (),
        phase: RunPhase = RunPhase.TRAINING,
        codecs: NegotiatedCodecs = IDENTITY,
        incarnation: int = INCARNATION,
    ) -> list[AgentAction]:
        """A worker grants a lease, and the driver ticks after it; without a number a new one."""
        number = lease if lease is not None else 100 + sum(self.leases.values()) + len(self.leases)
        actions = self.receive(Welcome(worker, incarnation, number, credits, codecs, committed, phase, 60.0))
        self.leases[worker] = number
        return actions + self.session.tick(self.now)

    def submit(self, step: int = 0, mode: Mode = Mode.TRAIN) -> list[AgentAction]:
        return self.session.submit(step, mode, 4, image_tokens(), self.now)

    def outputs(
        self, step: int = 0, mode: Mode = Mode.TRAIN, *, version: int = 0, worker: str = "w0"
    ) -> list[AgentAction]:
        return self.receive(Outputs(self.leases[worker], step, mode, version, 0.25, zeros(4, 2)))

    def gradients(self, step: int = 0, version: int = 0) -> list[AgentAction]:
        return self.session.submit_gradients(step, version, zeros(4, 2), self.now)

    def commit(self, step: int = 0, worker: str = "w0") -> list[AgentAction]:
        return self.receive(ActivationGradients(self.leases[worker], step, 3, 0.5, ()))

    def resend(
        self, step: int = 0, reason: ResendReason = ResendReason.STALE, mode: Mode = Mode.TRAIN, worker: str = "w0"
    ) -> list[AgentAction]:
        return self.receive(Resend(self.leases[worker], step, mode, reason))

    def phase(self, phase: RunPhase, worker: str = "w0") -> list[AgentAction]:
        return self.receive(Phase(self.leases[worker], phase, "because"))

    def tick_at(self, now: float) -> list[AgentAction]:
        self.now = now
        return self.session.tick(now)

    def worker(self, name: str = "w0") -> KnownWorker:
        worker = self.session._workers.named(name)
        assert worker is not None
        return worker

    def round_trip_s(self) -> float | None:
        return self.session._exchanges._patience.round_trip_s

    def reached(self) -> RunPhase:
        """How far the run is."""
        return self.session.phase

    def state_of(self, step: int = 0, mode: Mode = Mode.TRAIN) -> ExchangeState:
        exchange = self.session._exchanges._exchanges.get((mode, step))
        return exchange.state if exchange else ExchangeState.DONE


def messages(actions: Sequence[AgentAction], kind: type[AnyMessage]) -> list[AnyMessage]:
    """Return the messages of a kind that are published."""
    return [action.message for action in actions if isinstance(action, Publish) and isinstance(action.message, kind)]


def kinds(actions: Sequence[AgentAction]) -> list[str]:
    """Return what is done, by name; messages by theirs."""
    return [type(action.message if isinstance(action, Publish) else action).__name__ for action in actions]
