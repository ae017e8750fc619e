"""Drives one agent: joins session, transport, enrolment and foreman. Every wait of the agent is in `run`.

`pump` does all that can be done now and returns when there is something to do next by the clock alone, so that the
same driver runs over MQTT in a process of its own and, hundreds at a time, in a simulation with virtual time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cutlayer.broker.actions import (
    AgentAction,
    Duplicate,
    Fail,
    LeaseGranted,
    LeaseLost,
    LedgerTold,
    PhaseReached,
    Publish,
    Refused,
    Subscribe,
    Unsubscribe,
)
from cutlayer.broker.agent_session import AgentSession
from cutlayer.broker.courier import Courier
from cutlayer.broker.errors import BrokerUnreachable, IdentityTaken, WireError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    AgentState,
    Direction,
    GoodbyeReason,
    ModelChunk,
    RunManifest,
    WorkerState,
    serialize,
)
from cutlayer.broker.telemetry import activation_bytes
from cutlayer.broker.topics import AgentTopics
from cutlayer.broker.transport import Connected, Disconnected, Received, Transport, Will, WireCount
from cutlayer.edge_agent.agent_options import AgentOptions
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.enrolment import Enrolled, Enrolment
from cutlayer.edge_agent.foreman import Foreman
from cutlayer.edge_agent.reporter import Reporter
from cutlayer.edge_agent.uplink import Uplink
from cutlayer.edge_agent.visit import Visit

__all__ = ["AgentRuntime"]

log = logging.getLogger(__name__)


LONGEST_SLEEP_S = 10.0
"""Whoever drives an agent need not come back earlier, when it has no deadline and no news."""
LEAVE_S = 3.0
"""How long Ctrl-C waits for the worker's answer to the goodbye."""


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
        self._sent_bytes = 0
        self._visit = self._options.visit
        self._enrolment = Enrolment(topic, open_data, transport, self._options.site, is_visit=self._visit is not None)
        self._foreman: Foreman | None = None
        self._unserved_since = self._started_at
        self._is_leaving = False
        self.is_finished = False
        self.reporter = Reporter(incarnation, self._courier, clock)
        self._uplink = Uplink(self._courier, self._options.max_uplink_bytes_per_s, self._started_at)

    @property
    def is_leased(self) -> bool:
        """Whether a worker serves this agent."""
        return bool(self._session.leased_workers)

    @property
    def wire(self) -> WireCount:
        """All that has crossed the connection."""
        return self._transport.wire

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
        except IdentityTaken as error:
            is_graceful = True  # the other process speaks for this agent now, and the will would contradict it
            other = f"such as --topic {error.identity}-visits" if self._visit is not None else "(--topic)"
            raise IdentityTaken(error.identity, f"give this one another topic {other}") from error
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
        if self._foreman is not None:
            self._foreman.bench.save()
        if self._foreman is None or not self._foreman.was_leased:
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
                    self.reporter.num_reconnects += self._was_connected
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
        sent_bytes = self._transport.wire.sent_bytes
        if sent_bytes > self._sent_bytes:  # what is still leaving cannot have been answered
            self._session.progress(now, self._courier.handed_bytes, self._transport.pending_bytes())
        self._sent_bytes = sent_bytes
        self._uplink.tick(now)
        self._courier.tick(now)
        for message in self._courier.take_resumed():
            self._session.resumed(message, now)
        if self._foreman is not None:
            self._foreman.ask_for_weights(now)
        self._do(self._session.tick(now), now)
        if not self._is_leaving:
            self._enrolment.tick(now)
            if self._visit is not None:
                self._check_patience(self._visit, now)
            if self._foreman is not None:
                self._foreman.submit(now)
            if self.reporter.is_due(now, self._session.lease_s / 3):
                self._report(now)
        self._finish_if_done(now)
        self._uplink.tick(now)
        deadlines = [now + LONGEST_SLEEP_S, self._session.next_deadline(), self._courier.next_deadline()]
        if not self._is_leaving:
            if self._foreman is not None:
                deadlines.append(self._foreman.next_ask)
            if self._visit is not None and not self.is_leased:
                deadlines.append(self._unserved_since + self._visit.patience_s)
            deadlines += [self._enrolment.due_at, self.reporter.due_at, self._uplink.next_deadline(now)]
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
                    if packet.payload:
                        self._session.coming(now)
                case RunManifest():
                    is_bound = self._foreman is not None and self._foreman.was_leased
                    if self._enrolment.read_manifest(message, is_bound=is_bound):
                        self._foreman = None
                        self._unserved_since = self._clock()  # opening the data may have taken long
                case ModelChunk():
                    enrolled = self._enrolment.read_model(message)
                    if enrolled is not None:
                        self._enrolled(enrolled, now)
                case WorkerState():
                    self._enrolment.take_state(message)
                    self._do(self._session.receive(message, now), now)
                case _:
                    self._do(self._session.receive(message, now), now)
        except WireError as error:
            self._courier.refuse(error.label)
            log.warning("dropped a message on %s: %s", packet.topic, error)

    def _disconnected(self, event: Disconnected) -> None:
        if event.fatal is not None:
            raise event.fatal
        if self._is_connected:
            log.warning("connection lost (%s); trying again", event.reason)
        elif not self._was_connected and not self._problem:
            log.warning("%s; trying for %g s", event.reason, self._options.connect_timeout_s)
        self._problem = event.reason.removeprefix(f"no connection to {self._url}: ")
        self._is_connected = False

    def _enrolled(self, enrolled: Enrolled, now: float) -> None:
        self._courier.traffic.sample_bytes = activation_bytes(enrolled.manifest)
        self._foreman = Foreman(
            enrolled, self._session, self.reporter, self._uplink, self._do, self._options, self._clock
        )
        self._foreman.begin(now)

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
                case LeaseGranted():
                    # Without a foreman nobody has asked for it: it is forged, or of a run that another has replaced.
                    if self._foreman is not None:
                        self._enrolment.stop_waiting()
                        self._foreman.leased(action, now)
                case LeaseLost():
                    log.warning("lost the lease with worker %s: %s", action.worker, action.reason)
                    if not self.is_leased:
                        self._unserved_since = now
                        self._enrolment.wait(now)
                case LedgerTold():
                    self._enrolment.stop_waiting()
                    if self._foreman is not None:
                        self._foreman.go_by(action, now)
                case PhaseReached():
                    log.info("the run is %s%s", action.phase, f": {action.reason}" if action.reason else "")
                case Duplicate():
                    self.reporter.num_duplicates += 1
                case Refused():
                    self._courier.refuse(action.label)
                    log.debug("refused: %s", action.detail)
                case Fail() if self._visit is not None:
                    raise self._visit.explained(action.error)
                case Fail():
                    raise action.error
                case _:
                    if self._foreman is not None:
                        self._foreman.take(action, now)

    # The end --------------------------------------------------------------------------------------------------

    def _finish_if_done(self, now: float) -> None:
        if self._session.has_left:
            self._courier.send(self._session.offline())
            self.is_finished = True
        if self._foreman is not None and not self._is_leaving and self._foreman.go_on(now):
            self.leave(GoodbyeReason.COMPLETED, now)

    def _check_patience(self, visit: Visit, now: float) -> None:
        """Give up when nobody has served a visit for too long: somebody waits for it."""
        if not self.is_leased and now >= self._unserved_since + visit.patience_s:
            raise visit.ended(f"{self._enrolment.lacking}, after {visit.patience_s:g} s")

    def _report(self, now: float) -> None:
        telemetry = self.reporter.telemetry(now, num_repeats=self._session.num_repeats, is_final=False)
        before = self._courier.handed_bytes
        self._courier.send(Publish(self._topics.telemetry, telemetry, qos=0))
        num_bytes = self._courier.handed_bytes - before
        self._uplink.report_bytes += num_bytes
        self.reporter.sent(num_bytes, now)
