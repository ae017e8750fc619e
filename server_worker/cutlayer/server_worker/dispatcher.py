"""Brings a worker's messages to its session, and does what the session wants done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cutlayer.broker.actions import (
    AgentJoined,
    AgentLeft,
    CandidateJudged,
    Duplicate,
    Fail,
    PhaseReached,
    Publish,
    Refused,
    Subscribe,
    TelemetryReceived,
    Unsubscribe,
    WorkerAction,
)
from cutlayer.broker.courier import Courier
from cutlayer.broker.errors import IdentityTaken, RunError, WireError
from cutlayer.broker.messages import Probe, RunPhase, WindowState, WorkerState
from cutlayer.broker.probe import ProbeDesk
from cutlayer.broker.transport import Received, Transport
from cutlayer.broker.worker_session import WorkerSession
from cutlayer.server_worker.events import (
    AgentCountChanged,
    DuplicateReceived,
    EventHandler,
    MessageRefused,
    TelemetryTaken,
)
from cutlayer.server_worker.run_book import RunBook

__all__ = ["Dispatcher"]

log = logging.getLogger(__name__)


class Dispatcher:
    """Messages in, actions out, for one worker.

    Args:
        transport: The connection.
        courier: Messages over it.
        session: The conversation.
        book: Takes the agents' counters.
        is_pooled: Whether the worker is one of a pool.
        on_phase: Called when the run has reached another phase.
        emit: Takes events.

    Attributes:
        is_connected: Whether there is a connection.
        is_serving: Whether the worker has begun to serve.
    """

    def __init__(
        self,
        transport: Transport,
        courier: Courier,
        session: WorkerSession,
        book: RunBook,
        *,
        is_pooled: bool,
        on_phase: Callable[[PhaseReached], None],
        emit: EventHandler,
    ) -> None:
        self.is_connected = False
        self.is_serving = False
        self._transport = transport
        self._courier = courier
        self._session = session
        self._book = book
        self._is_pooled = is_pooled
        self._on_phase = on_phase
        self._emit = emit
        self._probes = ProbeDesk(session.name)
        self._warned_of: set[str] = set()
        self._was_announced = False

    def take(self, packet: Received, now: float) -> None:
        """Take a packet.

        Raises:
            CutlayerError: When the worker cannot go on.
        """
        num_before = self._courier.rejects.total()
        message = self._courier.receive(packet)
        if self._courier.rejects.total() > num_before:
            self._refused(self._courier.last_reject, f"a packet on {packet.topic} breaks the protocol")
        try:
            match message:
                case None:
                    if packet.payload:
                        self._session.heard(packet.topic, now)
                case WorkerState():
                    self._other_worker(packet.topic, message, now)
                case WindowState() if not self._is_pooled:
                    pass
                case Probe():
                    self.do(self._probes.receive(packet.topic, message, now, time.time()))
                case _:
                    self.do(self._session.receive(packet.topic, message, now))
        except WireError as error:
            self._refused(error.label, f"{packet.topic}: {error}")

    def _refused(self, label: str, detail: str) -> None:
        # Whoever sends nonsense sends it again and again: the first is told, all are counted.
        log.log(logging.DEBUG if label in self._warned_of else logging.WARNING, "refused (%s): %s", label, detail)
        self._warned_of.add(label)
        self._emit(MessageRefused(label))

    def _other_worker(self, topic: str, state: WorkerState, now: float) -> None:
        if state.worker == self._session.name:
            self._own_state(state)
            return
        if state.online and not self.is_serving and self._session.only_visits:
            self._other_server(state)
        elif state.online and not self.is_serving and not (self._is_pooled and state.pool_generation):
            raise RunError(
                f"worker {state.worker} already serves a run on this broker\n"
                "  fix: stop it, use another broker, or start all workers of the run with --pool"
            )
        if self._is_pooled:
            self.do(self._session.receive(topic, state, now))

    def _other_server(self, state: WorkerState) -> None:
        """Check that another worker serves the same finished run: several may, since nothing is trained."""
        if state.manifest_digest != bytes.fromhex(self._session.manifest.digest()):
            raise RunError(
                f"worker {state.worker} already serves another run on this broker\n"
                "  fix: stop it, or use another broker"
            )
        if state.phase in (RunPhase.WAITING, RunPhase.TRAINING):
            raise RunError(
                f"worker {state.worker} is training this run, and answers evaluations and predictions itself\n"
                "  fix: send them there, or serve when it has ended"
            )

    def _own_state(self, state: WorkerState) -> None:
        own = self._session.incarnation
        self._was_announced |= state.incarnation == own
        # Where two processes take the MQTT session from each other, the newer one's will is all that the older
        # sees of it. At the start it may be of a process from before this machine's clock was put back.
        if state.incarnation > own and (state.online or self._was_announced):
            raise IdentityTaken(state.worker)
        if not state.online and state.incarnation <= own and self.is_serving and self.is_connected:
            # A will that fired late, after this connection was there: what is retained must be true again.
            self.do([self._session.state()])

    def do(self, actions: list[WorkerAction]) -> None:
        """Do what the session wants done.

        Raises:
            CutlayerError: When the worker cannot go on.
        """
        for action in actions:
            match action:
                case Publish():
                    self._courier.send(action)
                case Subscribe():
                    self._transport.subscribe(action.topic_filter)
                case Unsubscribe():
                    self._transport.unsubscribe(action.topic_filter)
                case AgentJoined():
                    self._joined(action)
                case AgentLeft():
                    log.info("agent %s left: %s", action.agent, action.reason)
                    self._courier.forget(action.agent)
                    self._emit(AgentCountChanged(self._session.leases.num_taking_part))
                case CandidateJudged():
                    log.info("%s", action.text)
                case TelemetryReceived():
                    self._telemetry(action)
                case PhaseReached():
                    self._on_phase(action)
                case Duplicate():
                    self._emit(DuplicateReceived(action.kind))
                case Refused():
                    self._refused(action.label, action.detail)
                case Fail():
                    raise action.error

    def _joined(self, action: AgentJoined) -> None:
        if action.num_samples:
            how = "is back" if action.returning else "joined"
            log.info("agent %s %s with %d samples", action.agent, how, action.num_samples)
        else:
            log.info("agent %s visits: evaluations and predictions only", action.agent)
        self._emit(AgentCountChanged(self._session.leases.num_taking_part))

    def _telemetry(self, action: TelemetryReceived) -> None:
        previous = self._book.of(action.agent, action.telemetry.incarnation)
        if self._book.take(action.agent, action.telemetry):
            is_first = self._session.view.is_first
            self._emit(TelemetryTaken(action.agent, action.telemetry, previous, is_counted_here=is_first))
