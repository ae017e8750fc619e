"""Drives one agent: joins session, transport, data and arithmetic. Every wait of the agent is in `run`.

`pump` does all that can be done now and returns when there is something to do next by the clock alone, so that the
same driver runs over MQTT in a process of its own and, hundreds at a time, in a simulation with virtual time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cutlayer import compression
from cutlayer.broker.actions import (
    AgentAction,
    Duplicate,
    Fail,
    LeaseGranted,
    LeaseLost,
    OutputsReceived,
    PhaseReached,
    Publish,
    Refused,
    StepCommitted,
    Subscribe,
    Unsubscribe,
)
from cutlayer.broker.agent_session import AgentSession, Deadlines
from cutlayer.broker.courier import Courier
from cutlayer.broker.errors import BrokerUnreachable, IdentityTaken, MalformedMessage, RunError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    AgentState,
    Direction,
    GoodbyeReason,
    Mode,
    ModelChunk,
    RunManifest,
    RunPhase,
    serialize,
)
from cutlayer.broker.tensors import encode_tensor
from cutlayer.broker.topics import AgentTopics
from cutlayer.broker.transport import Connected, Disconnected, Received, Transport, Will
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.enrolment import Enrolled, Enrolment
from cutlayer.edge_agent.reporter import Reporter
from cutlayer.edge_agent.work_items import WorkItem, WorkItems

__all__ = ["AgentOptions", "AgentRuntime"]

log = logging.getLogger(__name__)


LEAVE_S = 3.0
"""How long Ctrl-C waits for the worker's answer to the goodbye."""


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How an agent behaves.

    Attributes:
        connect_timeout_s: How long the first connection is tried.
        deadlines: When messages are sent again.
        software: Version for the worker's log.
    """

    connect_timeout_s: float = 20.0
    deadlines: Deadlines = field(default_factory=Deadlines)
    software: str = ""


@dataclass(slots=True)
class _InFlight:
    item: WorkItem
    labels_B: NDArray[np.int64]


class AgentRuntime:
    """One agent, from its connection to its goodbye.

    Args:
        transport: The connection, not yet connected.
        topic: The agent's topic.
        incarnation: Start of this process, in milliseconds since the epoch.
        open_data: Opens the agent's samples for a run.
        url: The broker's address, for errors.
        options: How the agent behaves.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        transport: Transport,
        topic: str,
        incarnation: int,
        open_data: Callable[[Manifest], Dataset],
        *,
        url: str = "memory",
        options: AgentOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options or AgentOptions()
        self._topics = AgentTopics(topic)
        self._session = AgentSession(
            self._topics, incarnation, software=self._options.software, deadlines=self._options.deadlines
        )
        self._courier = Courier(transport, Direction.UP)
        self._transport = transport
        self._incarnation = incarnation
        self._url = url
        self._clock = clock
        self._started_at = clock()
        self._was_connected = False
        self._is_connected = False
        self._problem = ""
        self._pending_bytes = 0
        self._enrolment = Enrolment(topic, open_data, transport)
        self._client: ClientSide | None = None
        self._items: WorkItems | None = None
        self._report_s = 1.0
        self._in_flight: dict[tuple[Mode, int], _InFlight] = {}
        self._was_leased = False
        self._told_done = False
        self._is_evaluating = False
        self._is_leaving = False
        self.is_finished = False
        self.reporter = Reporter(incarnation, self._courier)

    @property
    def is_leased(self) -> bool:
        """Whether a worker serves this agent."""
        return bool(self._session.leased_workers)

    def start(self) -> None:
        """Start connecting, with a will that says offline."""
        offline = AgentState(online=False, incarnation=self._incarnation)
        self._transport.connect(Will(self._topics.state, serialize(offline)))

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Work until the run has ended or `should_stop` says so; then say goodbye.

        Raises:
            CutlayerError: When the agent cannot go on.
        """
        self.start()
        is_graceful = False
        try:
            while not self.is_finished and not should_stop():
                wake_at = self.pump(self._clock())
                # A signal only sets a flag, so a long wait would keep a person waiting.
                self._transport.wait(min(max(wake_at - self._clock(), 0.0), 0.5))
            if not self.is_finished:
                self._leave_early()
            is_graceful = True
        except IdentityTaken:
            is_graceful = True  # the other process speaks for this agent now, and the will would contradict it
            raise
        finally:
            # Whatever else ended this agent, the will tells the worker so.
            self._transport.close(graceful=is_graceful)

    def _leave_early(self) -> None:
        """Say goodbye before the run has ended, and wait a moment for the answer."""
        give_up_at = self._clock() + LEAVE_S
        if not self._is_connected:
            return
        self.leave(GoodbyeReason.LEFT, self._clock())
        while not self.is_finished and self._clock() < give_up_at:
            self.pump(self._clock())
            self._transport.wait(0.05)
        if not self.is_finished:
            self._courier.send(self._session.offline())

    def leave(self, reason: GoodbyeReason, now: float) -> None:
        """Start saying goodbye; `is_finished` follows."""
        self._is_leaving = True
        if not self._was_leased:
            self._courier.send(self._session.offline())
            self.is_finished = True
            return
        telemetry = self.reporter.telemetry(now, num_repeats=self._session.num_repeats, is_final=True)
        self._do(self._session.leave(reason, telemetry, now), now)

    def pump(self, now: float) -> float:
        """Do all that can be done now.

        Returns:
            The time of the next thing to do by the clock alone.

        Raises:
            CutlayerError: When the agent cannot go on.
        """
        for event in self._transport.poll():
            match event:
                case Received():
                    self._take(event, now)
                case Connected():
                    self._was_connected = self._is_connected = True
                    log.info("connected to %s (packets up to %d B)", self._url, event.max_packet_bytes)
                    self._enrolment.wait(now)
                    self._do(self._session.connected(now), now)
                case Disconnected():
                    self._disconnected(event)
        if not self._was_connected and now - self._started_at > self._options.connect_timeout_s:
            detail = f"no connection within {self._options.connect_timeout_s:g} s"
            raise BrokerUnreachable(self._url, f"{detail} ({self._problem})" if self._problem else detail)
        if not self._is_connected:
            return now + 1.0
        pending_bytes = self._transport.pending_bytes()
        if pending_bytes < self._pending_bytes:
            self._session.progress(now)
        self._pending_bytes = pending_bytes
        self._do(self._session.tick(now), now)
        if not self._is_leaving:
            self._enrolment.tick(now)
            self._submit_work(now)
            if self.reporter.is_due(now):
                self._report(now)
        self._finish_if_done(now)
        deadlines = [now + 1.0, self._session.next_deadline()]
        if not self._is_leaving:
            deadlines += [self._enrolment.due_at, self.reporter.due_at]
        return min(time for time in deadlines if time is not None)

    # Messages in ----------------------------------------------------------------------------------------------

    def _take(self, packet: Received, now: float) -> None:
        num_rejects = self._courier.rejects.total()
        message = self._courier.receive(packet)
        if self._courier.rejects.total() > num_rejects:
            log.debug("dropped a message on %s", packet.topic)
        try:
            match message:
                case None:
                    pass
                case RunManifest():
                    if self._enrolment.read_manifest(message, is_bound=self._was_leased):
                        self._client = self._items = None
                case ModelChunk():
                    enrolled = self._enrolment.read_model(message)
                    if enrolled is not None:
                        self._enrolled(enrolled, now)
                case _:
                    self._do(self._session.receive(message, now), now)
        except MalformedMessage as error:
            self._courier.refuse(error.label)
            log.warning("dropped a message on %s: %s", packet.topic, error)

    def _disconnected(self, event: Disconnected) -> None:
        if event.fatal is not None:
            raise event.fatal
        if self._is_connected:
            log.warning("connection lost (%s); trying again", event.reason)
        elif not self._was_connected and not self._problem:
            log.warning("%s; trying for %g s", event.reason, self._options.connect_timeout_s)
        self._problem = event.reason
        self._is_connected = False

    def _enrolled(self, enrolled: Enrolled, now: float) -> None:
        manifest, plan = enrolled.manifest, enrolled.plan
        self._client = enrolled.client
        self._report_s = manifest.telemetry_s
        self._items = WorkItems(
            plan,
            tuple(sorted(manifest.modalities)),
            every_epochs=manifest.evaluation.every_epochs,
            evaluation_samples=manifest.evaluation.samples,
        )
        self._do(
            self._session.ready(
                bytes.fromhex(manifest.digest()),
                plan.num_train,
                compression.available_codecs(),
                compression.available_byte_stages(),
                now,
            ),
            now,
        )

    # Actions out ----------------------------------------------------------------------------------------------

    def _do(self, actions: list[AgentAction], now: float) -> None:
        for action in actions:
            match action:
                case Publish():
                    self._courier.send(action)
                case Subscribe():
                    self._transport.subscribe(action.topic_filter)
                case Unsubscribe():
                    self._transport.unsubscribe(action.topic_filter)
                case OutputsReceived():
                    self._outputs(action)
                case StepCommitted():
                    self._step_committed(action.step)
                case LeaseGranted():
                    self._leased(action, now)
                case LeaseLost():
                    log.warning("lost the lease with worker %s: %s", action.worker, action.reason)
                    self._enrolment.wait(now)
                case PhaseReached():
                    log.info("the run is %s%s", action.phase, f": {action.reason}" if action.reason else "")
                case Duplicate():
                    self.reporter.num_duplicates += 1
                case Refused():
                    self._courier.refuse(action.label)
                    log.debug("refused: %s", action.detail)
                case Fail():
                    raise action.error

    def _leased(self, action: LeaseGranted, now: float) -> None:
        assert self._items is not None
        if not self._was_leased:
            self._was_leased = True
            self.reporter.start(self._items, self._report_s, now)
        self._enrolment.stop_waiting()
        self._told_done = False
        self._items.resume(action.committed)
        for mode, step in list(self._in_flight):
            if mode is Mode.TRAIN and step in self._items.committed:  # its commit was under the lease before
                self._step_committed(step)
        if self._is_evaluating and action.phase in (RunPhase.WAITING, RunPhase.TRAINING):
            self._train_again()
        log.info(
            "worker %s serves this agent; %d of %d steps are committed",
            action.worker,
            len(self._items.committed),
            self._items.plan.total_steps,
        )
        self._submit_work(now)

    def _train_again(self) -> None:
        """Go back from the last evaluations to training where the worker's checkpoint lacks some of the steps."""
        assert self._items is not None
        if self._items.is_training_done:
            return
        self._is_evaluating = False
        self._in_flight = {key: flight for key, flight in self._in_flight.items() if key[0] is Mode.TRAIN}
        self._items.forget_evaluations()
        self.reporter.forget_final_evaluations()

    def _submit_work(self, now: float) -> None:
        """Send as many microbatches as there are credits."""
        if self._client is None or self._items is None:
            return
        while self._session.can_submit() and self._session.phase in (RunPhase.TRAINING, RunPhase.EVALUATING):
            codecs = self._session.codecs()
            # Once the others evaluate, the weights stay as they are.
            item = self._items.next(may_train=self._session.phase is RunPhase.TRAINING)
            if item is None or codecs is None:
                return
            with self.reporter.stage("tokenize_encode"):
                tokenized = self._client.tokenize(item.split, item.indices, item.given, codecs.activations)
            self._in_flight[item.mode, item.step] = _InFlight(item, tokenized.labels_B)
            self._do(self._session.submit(item.step, item.mode, len(item.indices), tokenized.tensors, now), now)

    def _outputs(self, action: OutputsReceived) -> None:
        flight = self._in_flight.get((action.mode, action.step))
        if flight is None or self._client is None:
            return
        self.reporter.round_trips.add(action.round_trip_s)
        try:
            with self.reporter.stage("loss"):
                result = self._client.loss(action.outputs, flight.labels_B, action.codecs.outputs)
        except MalformedMessage as error:
            raise RunError(
                f"the worker's outputs cannot be used: {error}\n  fix: install the same release on both sides"
            ) from error
        if flight.item.evaluation is not None:
            del self._in_flight[action.mode, action.step]
            self.reporter.evaluated(flight.item.evaluation, result)
            return
        self.reporter.trained(action.step, result)
        gradients = encode_tensor(action.codecs.output_gradients, result.gradient_BC)
        now = self._clock()
        self._do(self._session.submit_gradients(action.step, action.version, gradients, now), now)

    def _step_committed(self, step: int) -> None:
        flight = self._in_flight.pop((Mode.TRAIN, step), None)
        if flight is not None and self._items is not None:
            self._items.commit(step)
            self.reporter.num_samples += len(flight.item.indices)

    # The end --------------------------------------------------------------------------------------------------

    def _finish_if_done(self, now: float) -> None:
        items = self._items
        if self._session.has_left:
            self._courier.send(self._session.offline())
            self.is_finished = True
        if items is None or not self.is_leased or self._is_leaving:
            return
        if items.is_training_done and not self._told_done:
            self._told_done = True
            self._do(self._session.training_done(now), now)
        if self._session.phase is RunPhase.EVALUATING and not self._is_evaluating:
            self._is_evaluating = True
            items.start_final_evaluations()
            self._submit_work(now)
        is_idle = not items.has_evaluations and not any(mode is not Mode.TRAIN for mode, _ in self._in_flight)
        if self._session.phase is RunPhase.ENDED or (self._is_evaluating and is_idle):
            self.leave(GoodbyeReason.COMPLETED, now)

    def _report(self, now: float) -> None:
        telemetry = self.reporter.telemetry(now, num_repeats=self._session.num_repeats, is_final=False)
        self._courier.send(Publish(self._topics.telemetry, telemetry, qos=0))
