"""Drives one agent: joins session, transport, data and arithmetic. Every wait of the agent is in `run`.

`pump` does all that can be done now and returns when there is something to do next by the clock alone, so that the
same driver runs over MQTT in a process of its own and, hundreds at a time, in a simulation with virtual time.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cutlayer import compression
from cutlayer.broker.actions import (
    AgentAction,
    CandidateGone,
    CandidateOffered,
    Duplicate,
    Fail,
    LeaseGranted,
    LeaseLost,
    LedgerTold,
    OutputsReceived,
    PhaseReached,
    Publish,
    Refused,
    StepCommitted,
    Subscribe,
    TensorsWanted,
    Unsubscribe,
    WeightsReceived,
)
from cutlayer.broker.agent_session import AgentSession, Deadlines
from cutlayer.broker.courier import Courier
from cutlayer.broker.errors import BrokerUnreachable, IdentityTaken, WireError
from cutlayer.broker.ledger import StepRanges
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    AgentState,
    Direction,
    EncodedTensor,
    GoodbyeReason,
    Mode,
    ModelChunk,
    RunManifest,
    RunPhase,
    serialize,
)
from cutlayer.broker.telemetry import activation_bytes
from cutlayer.broker.topics import AgentTopics
from cutlayer.broker.transport import Connected, Disconnected, Received, Transport, Will, WireCount
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.byte_plan import BytePlan
from cutlayer.edge_agent.codec_ladder import CodecLadder
from cutlayer.edge_agent.enrolment import Enrolled, Enrolment
from cutlayer.edge_agent.ledger_check import LedgerCheck
from cutlayer.edge_agent.reporter import Reporter
from cutlayer.edge_agent.site_parts import SiteParts
from cutlayer.edge_agent.uplink import Uplink
from cutlayer.edge_agent.visit import Visit
from cutlayer.edge_agent.workbench import Workbench

__all__ = ["AgentOptions", "AgentRuntime"]

log = logging.getLogger(__name__)


LONGEST_SLEEP_S = 10.0
"""Whoever drives an agent need not come back earlier, when it has no deadline and no news."""
LEAVE_S = 3.0
"""How long Ctrl-C waits for the worker's answer to the goodbye."""


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How an agent behaves.

    Attributes:
        connect_timeout_s: How long the first connection is tried.
        deadlines: When messages are sent again.
        software: Version for the worker's log.
        may_be_kept: Whether workers may keep this site's activations, where the run lets them.
        max_uplink_bytes_per_s: Limit of what it sends; None for none.
        visit: What it has the model do with its samples, where it trains nothing; None for taking part in the run.
        site: What the site has of the model by itself.
    """

    connect_timeout_s: float = 20.0
    deadlines: Deadlines = field(default_factory=Deadlines)
    software: str = ""
    may_be_kept: bool = True
    max_uplink_bytes_per_s: float | None = None
    visit: Visit | None = None
    site: SiteParts = field(default_factory=SiteParts)


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
        self._ledger_check = LedgerCheck(self._options.deadlines.hello_s)
        self._visit = self._options.visit
        self._enrolment = Enrolment(topic, open_data, transport, self._options.site, is_visit=self._visit is not None)
        self._bench: Workbench | None = None
        self._was_leased = False
        self._unserved_since = self._started_at
        self._told_done = False
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
        if self._bench is not None:
            self._bench.save()
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
        self._ask_for_weights(now)
        self._do(self._session.tick(now), now)
        if not self._is_leaving:
            self._enrolment.tick(now)
            if self._visit is not None:
                self._check_patience(self._visit, now)
            self._submit_work(now)
            if self.reporter.is_due(now, self._session.lease_s / 3):
                self._report(now)
        self._finish_if_done(now)
        self._uplink.tick(now)
        deadlines = [now + LONGEST_SLEEP_S, self._session.next_deadline(), self._courier.next_deadline()]
        if not self._is_leaving:
            if self._bench is not None and self._bench.weights is not None:
                deadlines.append(self._bench.weights.next_ask)
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
                    if self._enrolment.read_manifest(message, is_bound=self._was_leased):
                        self._bench = None
                        self._unserved_since = self._clock()  # opening the data may have taken long
                case ModelChunk():
                    enrolled = self._enrolment.read_model(message)
                    if enrolled is not None:
                        self._enrolled(enrolled, now)
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
        self._bench = Workbench(
            enrolled,
            self.reporter,
            may_be_kept=self._options.may_be_kept,
            ladder=self._ladder(enrolled),
            visit=self._visit,
        )
        self._courier.traffic.sample_bytes = activation_bytes(enrolled.manifest)
        missing = enrolled.manifest.modalities.keys() - set(enrolled.client.modalities)
        if missing:
            log.info(
                "this site has %s, and nothing of the run's %s: what it has is used",
                " and ".join(enrolled.client.modalities),
                " and ".join(sorted(missing)),
            )
        digest = bytes.fromhex(enrolled.manifest.digest())
        codecs, stages = compression.available_codecs(), compression.available_byte_stages()
        num_train, num_val = enrolled.plan.num_train, enrolled.plan.num_val
        is_synchronous = enrolled.manifest.window.mode == "synchronous"
        ready = self._session.ready(
            digest, num_train, codecs, stages, now, num_val=num_val, is_synchronous=is_synchronous
        )
        self._do(ready, now)

    def _ladder(self, enrolled: Enrolled) -> CodecLadder | None:
        """Make what chooses the codec of activations; None where there is nothing to choose and nothing to meet."""
        manifest, uplink = enrolled.manifest, self._uplink
        budget, limit, plan = manifest.budget, manifest.budget.bytes_per_sample, None
        if self._visit is not None or (not budget.ladder and limit is None):
            return None
        if limit is not None:
            plan = BytePlan(limit, enrolled.plan, manifest, len(enrolled.client.modalities))
        uplink.is_metered = bool(budget.ladder)
        ladder = CodecLadder(budget, uplink.state, plan=plan, max_bytes_per_s=uplink.max_bytes_per_s)
        ladder.on_change = self.reporter.codec_changed
        return ladder

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
                    self._step_committed(action, now)
                case WeightsReceived():
                    if self._bench is not None:
                        self._bench.take_weights(action)
                case CandidateOffered():
                    if self._bench is not None:
                        self._withdraw(self._bench.offer(action))
                case CandidateGone():
                    if self._bench is not None:
                        self._withdraw(self._bench.candidate_gone(action.step))
                case TensorsWanted():
                    self._supply(action, now)
                case LeaseGranted():
                    self._leased(action, now)
                case LeaseLost():
                    log.warning("lost the lease with worker %s: %s", action.worker, action.reason)
                    if not self.is_leased:
                        self._unserved_since = now
                        self._enrolment.wait(now)
                case LedgerTold():
                    self._enrolment.stop_waiting()
                    self._go_by(action, now)
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

    def _leased(self, action: LeaseGranted, now: float) -> None:
        if self._bench is None:  # nobody has asked for it: it is forged, or of a run that another has replaced
            return
        items = self._bench.items
        if not self._was_leased:
            self._was_leased = True
            # Nobody counts what a visit does: it tells its bytes to the worker with its goodbye, and nothing before.
            every_s = self._bench.telemetry_s if self._visit is None else math.inf
            self.reporter.start(items, every_s, now, share=self._bench.telemetry_share)
        self._enrolment.stop_waiting()
        if self._bench.weights is not None:
            self._bench.weights.leased(now)
        self._told_done = False
        self._go_by(action, now)
        self._uplink.begin(now)
        if self._bench.ladder is not None:
            self._bench.ladder.begin(len(items.committed))
        done = f"; {len(items.committed)} of {items.plan.total_steps} steps are committed"
        log.info("worker %s serves this agent%s", action.worker, done if self._visit is None else "")
        self._submit_work(now)

    def _go_by(self, told: LeaseGranted | LedgerTold, now: float) -> None:
        """Go by a worker's ledger: what the run has lost is done again, before anything further on."""
        bench, check = self._bench, self._ledger_check
        if bench is None or self._visit is not None:
            return
        lacking = bench.items.first_lacking(told.committed)
        suspected = check.suspected(told.worker)
        still_lacks = suspected is not None and suspected not in StepRanges(told.committed)
        # The only worker there is may have lost steps, and cannot lag behind others.
        is_only = isinstance(told, LeaseGranted) and len(self._session.leased_workers) == 1
        if lacking is None or is_only or check.is_lost(told.worker, lacking, now, still_lacks=still_lacks):
            if bench.resume(told.committed, self._session.phase):
                log.warning("worker %s has not committed all that was taken for committed; doing it again", told.worker)
                self._session.withdraw_training()
                self._told_done = False
            if lacking is None:
                check.is_lost(told.worker, None, now, still_lacks=False)
            return
        bench.items.learn(told.committed)
        self._session.ask_ledger(told.worker, now + check.confirm_s)

    def _submit_work(self, now: float) -> None:
        """Send as many microbatches as there are credits, and as the limit of the uplink lets by."""
        self._submit_paced(now)
        self.reporter.paced_s = self._uplink.paced_s

    def _submit_paced(self, now: float) -> None:
        phase, bench = self._session.phase, self._bench
        is_held = bench is not None and bench.weights is not None and bench.weights.holds
        is_served = phase in (RunPhase.TRAINING, RunPhase.EVALUATING)
        if self._visit is not None:
            is_served = phase is not RunPhase.ENDED
        if bench is None or is_held or not is_served:
            self._uplink.stop_waiting(now)
            return
        # Once the others evaluate, the weights stay as they are.
        may_train = phase is RunPhase.TRAINING
        while self._session.can_submit() and bench.items.has_next(may_train=may_train):
            if not self._uplink.may_send(now):
                return
            codecs = self._session.codecs()
            assert codecs is not None, "with a credit there is a lease"
            microbatch = bench.next(codecs, may_train=may_train, store_for=self._session.store_for)
            if microbatch is None:  # what was left were evaluations of what no sample has
                break
            step, mode, refs, num_samples = microbatch.step, microbatch.mode, microbatch.refs, microbatch.num_samples
            tensors, candidate = microbatch.tensors, microbatch.candidate
            self._do(self._session.submit(step, mode, num_samples, tensors, now, refs, candidate), now)
        self._uplink.stop_waiting(now)

    def _withdraw(self, evaluation_steps: list[int]) -> None:
        for step in evaluation_steps:
            self._session.withdraw(step, Mode.EVAL)

    def _supply(self, wanted: TensorsWanted, now: float) -> None:
        """Send a microbatch again with the tensors that a store lacks."""
        microbatch = None if self._bench is None else self._bench.again(wanted)
        if microbatch is None:
            self._session.withdraw(wanted.step, wanted.mode)
        else:
            tensors, refs = microbatch.tensors, microbatch.refs
            self._do(self._session.supply(wanted.step, wanted.mode, tensors, refs, now), now)

    def _outputs(self, action: OutputsReceived) -> None:
        def send(gradients: EncodedTensor, of_tokenizers: tuple[tuple[str, EncodedTensor], ...]) -> None:
            now = self._clock()
            self._do(self._session.submit_gradients(action.step, action.version, gradients, now, of_tokenizers), now)

        if self._bench is not None:
            self._bench.outputs(action, send)

    def _step_committed(self, action: StepCommitted, now: float) -> None:
        if self._bench is None:
            return
        if self._bench.weights is not None and action.window is not None:
            self._bench.weights.committed(action.window, now)
        self._bench.committed(action.step, action.tensors, action.codec)

    def _ask_for_weights(self, now: float) -> None:
        """Ask all workers for the tokenizers' weights, where they are waited for: they follow the answer to a Hello."""
        weights = None if self._bench is None else self._bench.weights
        if weights is not None and weights.asks(now):
            for worker in self._session.leased_workers:
                self._session.ask_ledger(worker, now)

    # The end --------------------------------------------------------------------------------------------------

    def _finish_if_done(self, now: float) -> None:
        if self._session.has_left:
            self._courier.send(self._session.offline())
            self.is_finished = True
        bench = self._bench
        if bench is not None and self._visit is not None and not self._is_leaving:
            self._finish_visit(self._visit, bench, now)
            return
        if bench is None or not self.is_leased or self._is_leaving:
            return
        if bench.items.is_training_done and not self._told_done:
            self._told_done = True
            self._do(self._session.training_done(now), now)
        if self._session.phase is RunPhase.EVALUATING and not bench.is_finishing:
            if bench.may_end_early:  # what is out will not be committed, and holds credits
                self._session.withdraw_training()
            self._withdraw(bench.finish())
            self._submit_work(now)
        if self._session.phase is RunPhase.ENDED or bench.is_finished:
            self.leave(GoodbyeReason.COMPLETED, now)

    def _finish_visit(self, visit: Visit, bench: Workbench, now: float) -> None:
        if bench.is_finished:
            self.leave(GoodbyeReason.COMPLETED, now)
        elif self._session.phase is RunPhase.ENDED:
            raise visit.ended("the run has ended before all samples were answered")

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
