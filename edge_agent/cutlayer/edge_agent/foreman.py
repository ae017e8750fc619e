"""Has the agent's work done once it has enrolled: what the session lets by goes to the workbench, and back.

The session knows credits, leases and the run's phase; the workbench knows samples and tensors. Neither knows the other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from cutlayer import compression
from cutlayer.broker.actions import (
    AgentAction,
    CandidateGone,
    CandidateOffered,
    LeaseGranted,
    LedgerTold,
    OutputsReceived,
    StepCommitted,
    TensorsWanted,
    WeightsReceived,
)
from cutlayer.broker.agent_session import AgentSession
from cutlayer.broker.ledger import StepRanges
from cutlayer.broker.messages import EncodedTensor, Mode, RunPhase
from cutlayer.edge_agent.agent_options import AgentOptions
from cutlayer.edge_agent.byte_plan import BytePlan
from cutlayer.edge_agent.codec_ladder import CodecLadder
from cutlayer.edge_agent.enrolment import Enrolled
from cutlayer.edge_agent.ledger_check import LedgerCheck
from cutlayer.edge_agent.reporter import Reporter
from cutlayer.edge_agent.uplink import Uplink
from cutlayer.edge_agent.visit import Visit
from cutlayer.edge_agent.workbench import Workbench

__all__ = ["Foreman"]

log = logging.getLogger(__name__)

WorkAction = OutputsReceived | StepCommitted | WeightsReceived | CandidateOffered | CandidateGone | TensorsWanted
"""What a session has for a workbench."""


class Foreman:
    """Stands between one agent's session and its workbench.

    Args:
        enrolled: The run, and the client side of its model.
        session: The conversation.
        reporter: Counts what is done.
        uplink: Says when microbatches may go.
        do: Does what the session wants done, at a time.
        options: How the agent behaves.
        clock: Seconds, monotonic.

    Attributes:
        bench: Does the arithmetic.
        was_leased: Whether a worker has served the agent in this run.
        told_done: Whether the workers know that all its training is committed.
    """

    def __init__(
        self,
        enrolled: Enrolled,
        session: AgentSession,
        reporter: Reporter,
        uplink: Uplink,
        do: Callable[[list[AgentAction], float], None],
        options: AgentOptions,
        clock: Callable[[], float],
    ) -> None:
        self.was_leased = False
        self.told_done = False
        self._enrolled = enrolled
        self._session = session
        self._reporter = reporter
        self._uplink = uplink
        self._do = do
        self._visit = options.visit
        self._clock = clock
        self._ledger_check = LedgerCheck(options.deadlines.hello_s)
        self.bench = Workbench(
            enrolled, reporter, may_be_kept=options.may_be_kept, ladder=self._ladder(), visit=self._visit
        )

    def _ladder(self) -> CodecLadder | None:
        """Make what chooses the codec of activations; None where there is nothing to choose and nothing to meet."""
        enrolled, uplink = self._enrolled, self._uplink
        budget, limit, plan = enrolled.manifest.budget, enrolled.manifest.budget.bytes_per_sample, None
        if self._visit is not None or (not budget.ladder and limit is None):
            return None
        if limit is not None:
            plan = BytePlan(limit, enrolled.plan, enrolled.manifest, len(enrolled.client.modalities))
        uplink.is_metered = bool(budget.ladder)
        ladder = CodecLadder(budget, uplink.state, plan=plan, max_bytes_per_s=uplink.max_bytes_per_s)
        ladder.on_change = self._reporter.codec_changed
        return ladder

    def begin(self, now: float) -> None:
        """Ask for a lease: all that work needs is here."""
        manifest, client, plan = self._enrolled.manifest, self._enrolled.client, self._enrolled.plan
        missing = manifest.modalities.keys() - set(client.modalities)
        if missing:
            log.info(
                "this site has %s, and nothing of the run's %s: what it has is used",
                " and ".join(client.modalities),
                " and ".join(sorted(missing)),
            )
        ready = self._session.ready(
            bytes.fromhex(manifest.digest()),
            plan.num_train,
            compression.available_codecs(),
            compression.available_byte_stages(),
            now,
            num_val=plan.num_val,
            is_synchronous=manifest.window.mode == "synchronous",
        )
        self._do(ready, now)

    # What workers say of the run ------------------------------------------------------------------------------

    def leased(self, action: LeaseGranted, now: float) -> None:
        """Begin or go on: a worker serves the agent."""
        bench, items = self.bench, self.bench.items
        if not self.was_leased:
            self.was_leased = True
            # Nobody counts what a visit does: it tells its bytes to the worker with its goodbye, and nothing before.
            every_s = bench.telemetry_s if self._visit is None else math.inf
            self._reporter.start(items, every_s, now, share=bench.telemetry_share)
        if bench.weights is not None:
            bench.weights.leased(now)
        self.told_done = False
        self.go_by(action, now)
        self._uplink.begin(now)
        if bench.ladder is not None:
            bench.ladder.begin(len(items.committed))
        done = f"; {len(items.committed)} of {items.plan.total_steps} steps are committed"
        log.info("worker %s serves this agent%s", action.worker, done if self._visit is None else "")
        self.submit(now)

    def go_by(self, told: LeaseGranted | LedgerTold, now: float) -> None:
        """Go by a worker's ledger: what the run has lost is done again, before anything further on."""
        bench, check = self.bench, self._ledger_check
        if self._visit is not None:
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
                self.told_done = False
            if lacking is None:
                check.is_lost(told.worker, None, now, still_lacks=False)
            return
        bench.items.learn(told.committed)
        self._session.ask_ledger(told.worker, now + check.confirm_s)

    # Work -----------------------------------------------------------------------------------------------------

    def take(self, action: WorkAction, now: float) -> None:
        """Take what the session has for the workbench.

        Raises:
            RunError: When outputs are not what the manifest and the lease say.
            WireError: When weights, or gradients at the cut, are not what the manifest says.
        """
        match action:
            case OutputsReceived():
                self._outputs(action)
            case StepCommitted():
                self._committed(action, now)
            case WeightsReceived():
                self.bench.take_weights(action)
            case CandidateOffered():
                self._withdraw(self.bench.offer(action))
            case CandidateGone():
                self._withdraw(self.bench.candidate_gone(action.step))
            case TensorsWanted():
                self._supply(action, now)

    def submit(self, now: float) -> None:
        """Send as many microbatches as there are credits, and as the limit of the uplink lets by."""
        self._submit_paced(now)
        self._reporter.paced_s = self._uplink.paced_s

    def _submit_paced(self, now: float) -> None:
        phase, bench = self._session.phase, self.bench
        is_held = bench.weights is not None and bench.weights.holds
        is_served = phase in (RunPhase.TRAINING, RunPhase.EVALUATING)
        if self._visit is not None:
            is_served = phase is not RunPhase.ENDED
        if is_held or not is_served:
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

    def _supply(self, wanted: TensorsWanted, now: float) -> None:
        """Send a microbatch again with the tensors that a store lacks."""
        microbatch = self.bench.again(wanted)
        if microbatch is None:
            self._session.withdraw(wanted.step, wanted.mode)
        else:
            tensors, refs = microbatch.tensors, microbatch.refs
            self._do(self._session.supply(wanted.step, wanted.mode, tensors, refs, now), now)

    def _outputs(self, action: OutputsReceived) -> None:
        def send(gradients: EncodedTensor, of_tokenizers: tuple[tuple[str, EncodedTensor], ...]) -> None:
            now = self._clock()
            self._do(self._session.submit_gradients(action.step, action.version, gradients, now, of_tokenizers), now)

        self.bench.outputs(action, send)

    def _committed(self, action: StepCommitted, now: float) -> None:
        if self.bench.weights is not None and action.window is not None:
            self.bench.weights.committed(action.window, now)
        self.bench.committed(action.step, action.tensors, action.codec)

    def ask_for_weights(self, now: float) -> None:
        """Ask all workers for the tokenizers' weights, where they are waited for: they follow the answer to a Hello."""
        weights = self.bench.weights
        if weights is not None and weights.asks(now):
            for worker in self._session.leased_workers:
                self._session.ask_ledger(worker, now)

    @property
    def next_ask(self) -> float | None:
        """When to ask for weights; None while none are waited for."""
        return None if self.bench.weights is None else self.bench.weights.next_ask

    # The end --------------------------------------------------------------------------------------------------

    def go_on(self, now: float) -> bool:
        """Go on from training to evaluating; return whether nothing is left to do.

        Raises:
            RunError: When the run has ended before a visit was answered.
        """
        bench = self.bench
        if self._visit is not None:
            return self._is_answered(self._visit)
        if not self._session.leased_workers:
            return False
        if bench.items.is_training_done and not self.told_done:
            self.told_done = True
            self._do(self._session.training_done(now), now)
        if self._session.phase is RunPhase.EVALUATING and not bench.is_finishing:
            if bench.may_end_early:  # what is out will not be committed, and holds credits
                self._session.withdraw_training()
            self._withdraw(bench.finish())
            self.submit(now)
        return self._session.phase is RunPhase.ENDED or bench.is_finished

    def _is_answered(self, visit: Visit) -> bool:
        if not self.bench.is_finished and self._session.phase is RunPhase.ENDED:
            raise visit.ended("the run has ended before all samples were answered")
        return self.bench.is_finished

    def _withdraw(self, evaluation_steps: list[int]) -> None:
        for step in evaluation_steps:
            self._session.withdraw(step, Mode.EVAL)
