"""The worker's side of the conversation, without I/O: messages and the time in, actions and work out.

The session grants leases (`worker_roster.py`), keeps each exchange's state (`worker_steps.py`), decides which
microbatches go forward together, when their backward pass runs and when a window closes (`scheduler.py`), and remembers
what is committed. Its driver (`cutlayer.server_worker.runtime`) does the actions and the arithmetic.

A *group* is what went forward together: one graph. Its backward pass runs when all its gradients are there, or, in
asynchronous mode, `window.deadline_s` after the first, for those that are there; the graph stays for the others. A
*window* is what one optimizer step commits. Backward passes come before new forward passes, so that live graphs stay
few (design, section 5).

In a pool each worker holds a part of the window, and tells the others how much (`WindowState`). When the parts make
up a window, all of them start a *round*, which commits it everywhere or nowhere (`pool_round.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cutlayer.broker.actions import PhaseReached, Publish, Refused, Subscribe, WorkerAction
from cutlayer.broker.leases import Lease, LeaseTable
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    MAX_LIST,
    Activations,
    AgentState,
    EncodedTensor,
    Goodbye,
    Hello,
    Message,
    Mode,
    OutputGradients,
    Phase,
    Resend,
    ResendReason,
    RunPhase,
    Telemetry,
    TrainingDone,
    WindowState,
    WorkerState,
)
from cutlayer.broker.pool_members import PoolMembers
from cutlayer.broker.pool_round import Verdict, WindowPart
from cutlayer.broker.scheduler import Scheduler
from cutlayer.broker.selection import Selection
from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.broker.topics import WORKER_WINDOWS, AgentTopics, WorkerTopics, agent_of
from cutlayer.broker.work import Backward, Commit, Key, NamedTensors, Work
from cutlayer.broker.work_in_hand import WorkInHand
from cutlayer.broker.worker_candidates import WorkerCandidates
from cutlayer.broker.worker_roster import WorkerRoster
from cutlayer.broker.worker_run import WorkerLimits, WorkerRun
from cutlayer.broker.worker_steps import ContentRefused, WorkerSteps
from cutlayer.broker.worker_view import WorkerView

__all__ = ["WorkerLimits", "WorkerSession"]

WINDOW_REPEAT_S = 1.0
"""A worker of a pool says so often what it holds of the window: the message before may have been lost."""
ROUND_PAUSE_S = 0.1
"""From a round that committed nothing to the next that this worker asks for."""


class WorkerSession:
    """One worker's conversations with all its agents.

    Args:
        name: The worker's name.
        incarnation: Start of this process, in milliseconds since the epoch.
        manifest: The run.
        limits: What it allows.
        leases: The (empty) table of leases.
        is_pooled: Whether it shares its windows with other workers.
        ledger: What is already committed (from a checkpoint).
        committed_samples: Samples already committed.
        window: Windows already committed.
        version: Version of the weights.
        known_samples: Samples of each agent that the run has seen.
        selection: Which weights the run ends with, where these are chosen.

    Attributes:
        view: Figures for the driver.
        candidates: The weights that are judged, where any are.
    """

    def __init__(
        self,
        name: str,
        incarnation: int,
        manifest: Manifest,
        limits: WorkerLimits,
        leases: LeaseTable,
        *,
        is_pooled: bool = False,
        ledger: Ledger | None = None,
        committed_samples: int = 0,
        window: int = 0,
        version: int = 0,
        known_samples: Mapping[str, int] | None = None,
        selection: Selection | None = None,
    ) -> None:
        digest = bytes.fromhex(manifest.digest())
        in_hand = WorkInHand(manifest.window, window, version, committed_samples)
        self._run = WorkerRun(
            name=name,
            incarnation=incarnation,
            manifest=manifest,
            digest=digest,
            limits=limits,
            leases=leases,
            ledger=ledger or Ledger(),
            in_hand=in_hand,
            scheduler=Scheduler(
                in_hand,
                manifest.window,
                limits.max_batch_samples,
                is_pooled=is_pooled,
                is_contrasted=isinstance(manifest.task, RetrievalSpec) and manifest.task.negatives == "window",
            ),
            members=PoolMembers(name, digest) if is_pooled else None,
            known_samples=dict(known_samples or {}),
            selection=selection,
        )
        self.candidates = WorkerCandidates(self._run, self._is_over)
        self.name = name
        self.incarnation = incarnation
        self.view = WorkerView(self._run)
        self._is_synchronous = manifest.window.mode == "synchronous"
        self._topics = WorkerTopics(name)
        self._roster = WorkerRoster(self._run, self._advance, self.candidates.offer)
        self._steps = WorkerSteps(self._run)
        self._window_said_at: float | None = None
        self._no_round_before = 0.0
        self._is_serving = False

    # What the driver asks -------------------------------------------------------------------------------------

    @property
    def phase(self) -> RunPhase:
        """Where the run stands."""
        return self._run.phase

    @property
    def reason(self) -> str:
        """Why it has come there."""
        return self._run.reason

    @property
    def manifest(self) -> Manifest:
        """The run."""
        return self._run.manifest

    @property
    def only_visits(self) -> bool:
        """Whether nothing is trained here."""
        return self._run.limits.only_visits

    @property
    def ledger(self) -> Ledger:
        """What is committed."""
        return self._run.ledger

    @property
    def leases(self) -> LeaseTable:
        """Who trains here."""
        return self._run.leases

    @property
    def version(self) -> int:
        """Version of the weights."""
        return self._run.in_hand.version

    @property
    def window(self) -> int:
        """Windows committed."""
        return self._run.in_hand.window

    @property
    def committed_samples(self) -> int:
        """Samples committed."""
        return self._run.in_hand.committed_samples

    @property
    def known_samples(self) -> Mapping[str, int]:
        """Samples of each agent that the run has seen."""
        return self._run.known_samples

    @property
    def planned_samples(self) -> int | None:
        """Samples that the agents known so far will have trained on in all epochs; None for a service."""
        return self._run.planned_samples

    @property
    def selection(self) -> Selection | None:
        """Which weights the run ends with, where these are chosen."""
        return self._run.selection

    @property
    def num_live(self) -> int:
        """Microbatches that are being worked on."""
        return len(self._run.in_hand.exchanges)

    @property
    def is_drained(self) -> bool:
        """Whether nothing is left of what it had when it began to drain."""
        return self._run.is_draining and not self.num_live and not self._run.scheduler.is_in_round

    @property
    def num_other_workers(self) -> int:
        """Other workers of the pool that serve."""
        return 0 if self._run.members is None else self._run.members.num_serving

    @property
    def num_online_workers(self) -> int:
        """Other workers of the pool that serve this run, or another one, which this worker would take over."""
        return 0 if self._run.members is None else self._run.members.num_online

    def live_keys(self) -> tuple[Key, ...]:
        """Return the microbatches that are being worked on."""
        return tuple(self._run.in_hand.exchanges)

    def state(self, *, is_online: bool = True) -> Publish:
        """Return this worker's retained state, to be published."""
        return self._run.state(is_online=is_online)

    def next_work(self, now: float) -> Work | None:
        """Return what to compute next, or None. The driver reports back before it asks again."""
        run = self._run
        others = None if run.members is None else run.members.in_window(self.window)
        may_commit = now >= self._no_round_before
        if others is not None and not may_commit:
            others = replace(others, ask_to_close=False)
        if run.members is not None and may_commit and not run.scheduler.is_in_round and self.candidates.wants_round():
            return Commit(self.window, run.in_hand.window_samples, len(run.in_hand.in_window), None, is_due=False)
        return run.scheduler.next_work(
            run.leases.training(),
            run.ledger,
            is_training=run.phase is not RunPhase.WAITING,
            credits=run.limits.credits,
            planned_samples=run.planned_samples,
            now=now,
            others=others,
            may_commit=may_commit,
            may_evaluate=self._may_evaluate,
        )

    def _may_evaluate(self, agent: str, candidate: str) -> bool:
        """Return whether an agent's evaluation may run now with the weights that it names; empty for the newest.

        What evaluates the finished model at a worker of a pool that does not have it yet waits for it. A visit takes
        the weights as they are.
        """
        selection = self._run.selection
        if selection is None:
            return True
        if candidate:
            return candidate in selection.held
        lease = self.leases.of(agent)
        is_visit = lease is not None and lease.is_visit
        return is_visit or self._run.members is None or selection.is_restored

    def next_deadline(self, now: float) -> float | None:
        """Return the time at which `tick` or `next_work` has something to do by the clock alone, or None."""
        times = [*self._roster.deadlines(), *self._run.scheduler.deadlines(), *self.candidates.deadlines()]
        if self._run.members is not None:
            times += [self._no_round_before]
            times += [self._window_said_at + WINDOW_REPEAT_S] if self._window_said_at is not None else []
        return min((time for time in times if time > now), default=None)

    def keep_in(self, store: str) -> None:
        """Tell agents from now on which store keeps activations; empty for none."""
        self._run.store = store

    # What the driver reports ----------------------------------------------------------------------------------

    def disconnected(self) -> None:
        """Take notice that the connection is gone: until it is back, silence says nothing about an agent."""
        self._roster.disconnected()

    def heard(self, topic: str, now: float) -> None:
        """Take notice of a piece of a message that is not whole yet: a slow link is not a dead one."""
        self._roster.heard(agent_of(topic), now)

    def connected(self) -> list[WorkerAction]:
        """Take notice of a connection, the first or another one: from now on agents are served."""
        self._is_serving = True
        self._roster.connected()
        actions: list[WorkerAction] = [Subscribe(self._topics.inboxes), self.state()]
        if self._run.members is not None:
            actions.insert(0, Subscribe(WORKER_WINDOWS))
        for lease in self.leases:
            actions += self._roster.subscribe(lease.agent)
        return actions

    def forwarded(
        self,
        group: int,
        outputs: dict[Key, EncodedTensor],
        version: int,
        now: float,
        unkept: Mapping[Key, bytes] | None = None,
    ) -> list[WorkerAction]:
        """Take the outputs of a forward pass and send each to its agent.

        Args:
            group: The group's number.
            outputs: Of each of its microbatches.
            version: Version of the weights.
            now: Seconds.
            unkept: Masks of the samples that the store has no room for.
        """
        return self._steps.forwarded(group, outputs, version, now, unkept or {})

    def take_weights(self, version: int, tensors: NamedTensors) -> None:
        """Take the tokenizers' newest weights: at the start, and before each `committed` or `round_committed`."""
        self._run.weights.take(version, tensors)

    def lacks(self, key: Key, missing: bytes) -> list[WorkerAction]:
        """Ask for a microbatch again with the tensors of the samples that the store lacks.

        Args:
            key: The microbatch.
            missing: Mask of those samples.
        """
        return self._steps.lacks(key, missing)

    def backward_begun(self, work: Backward, now: float) -> list[WorkerAction]:
        """Tell the pool what a backward pass is about to add to the window: or others would fill it meanwhile, too."""
        if self._run.members is None:
            return []
        coming = [key for key, _ in work.gradients]
        return self._say_window(now, closes=False, coming=coming)

    def backward_done(
        self, group: int, now: float, cut_gradients: Mapping[Key, NamedTensors] | None = None
    ) -> list[WorkerAction]:
        """Take notice that a group's gradients are part of the open window.

        Args:
            group: The group's number.
            now: Seconds.
            cut_gradients: The gradients at the cut of its microbatches; with trainable tokenizers.
        """
        for key, tensors in (cut_gradients or {}).items():
            self._run.in_hand.exchanges[key].cut_gradients = tensors
        self._run.in_hand.backward_done(group, now)
        return self._say_window(now, closes=False) if self._run.members is not None else []

    def committed(self, version: int, now: float) -> list[WorkerAction]:
        """Take notice of an optimizer step and tell the agents whose microbatches it holds."""
        in_hand = self._run.in_hand
        window = self.window
        done = in_hand.committed(version)
        for exchange in done:
            self.ledger.add(exchange.key.agent, exchange.key.step)
        if self._run.selection is not None:
            self._run.selection.committed(in_hand.committed_samples, self._run.planned_samples)
        in_hand.give_up_stale(now)
        return [*self._tell_weights(), *self._steps.tell_committed(done, window, now)]

    def candidate_taken(self, name: str, tensors: NamedTensors, now: float) -> list[WorkerAction]:
        """Take notice that the newest weights, which were due as a candidate, are held under a name.

        Args:
            name: Their fingerprint.
            tensors: The tokenizers' weights among them, where they are trained.
            now: Seconds.
        """
        selection = self._run.selection
        assert selection is not None, "candidates are taken where they are judged"
        before = selection.current
        selection.taken(name)
        self.candidates.give(name, tensors)
        actions = self.candidates.offer_now(now) if before is None else []
        return [*actions, *self._steps.drop_unheld()]

    def kept(self, version: int) -> list[WorkerAction]:
        """Take notice that the newest weights are the ones that the run ends with: agents now evaluate these."""
        selection = self._run.selection
        assert selection is not None, "weights are kept where they are chosen"
        selection.restored()
        self._run.in_hand.stop_training(version)
        return [*self._steps.drop_unheld(), *self._enter(RunPhase.EVALUATING, selection.reason())]

    def fail_content(self, key: Key, detail: str) -> list[WorkerAction]:
        """Refuse an agent for good whose tensors cannot be decoded."""
        self._run.in_hand.discard(key)
        lease = self.leases.of(key.agent)
        return [] if lease is None else [*self._roster.refuse(lease, detail), *self._advance()]

    def end(self, reason: str) -> list[WorkerAction]:
        """End the run now, for a reason of the driver's."""
        return self._enter(RunPhase.ENDED, reason)

    def drain(self) -> list[WorkerAction]:
        """Take nothing new from now on: agents send what is new elsewhere, and what is here goes on to its end."""
        self._run.is_draining = True
        return [self.state()]

    def tick(self, now: float) -> list[WorkerAction]:
        """Do what is due: vanished agents, what the pool must hear again, and the run's next phase."""
        actions = self._roster.tick(now)
        actions += self.candidates.tick(now)
        actions += self._conclude_alone(now)
        said_at = self._window_said_at
        if said_at is not None and now >= said_at + WINDOW_REPEAT_S:
            actions += self._say_window(now, closes=self._run.scheduler.is_in_round)
        return actions + self._advance()

    # Rounds of a pool -----------------------------------------------------------------------------------------

    def round_begun(self, now: float) -> list[WorkerAction]:
        """Take notice that a round is under way; ask the others to join it."""
        self._run.scheduler.is_in_round = True
        return self._say_window(now, closes=True)

    def part(self, digest: str, present: bytes, *, is_due: bool | None) -> WindowPart:
        """Return what this worker brings to a round.

        Args:
            digest: Of its weights.
            present: Parameters that a sample has reached.
            is_due: Whether the window may close; None for a worker that joins.
        """
        in_hand = self._run.in_hand
        is_waiting = self._is_synchronous and is_due is not None
        has_say = is_due is not None
        return WindowPart(
            worker=self.name,
            window=self.window,
            version=self.version,
            digest=digest,
            steps=tuple((key.agent, key.step) for key in in_hand.in_window),
            num_samples=in_hand.window_samples,
            present=present,
            planned_samples=self._run.planned_samples,
            is_due=is_due,
            waits_for=tuple(lease.agent for lease in self.leases.training()) if is_waiting else (),
            judged=self.candidates.proposals() if has_say else (),
            is_over=has_say and self._run.selection is not None and self._is_over(),
        )

    def progress(self, verdict: Verdict) -> float | None:
        """Return the share of the planned samples that is committed with a verdict's window."""
        return self._run.scheduler.progress(verdict.num_samples, verdict.planned_samples)

    def round_committed(self, verdict: Verdict, version: int, generation: int, now: float) -> list[WorkerAction]:
        """Take notice of a window that the pool has committed."""
        in_hand = self._run.in_hand
        window = self.window
        own = in_hand.committed(version, verdict.num_samples)
        for agent, step in verdict.steps:
            self.ledger.add(agent, step)
        if self._run.selection is not None:
            self._run.selection.committed(in_hand.committed_samples, verdict.planned_samples)
        self._round_ended(generation, window)
        self._window_said_at = now  # whoever has missed the commit hears of it, also while nothing new is said
        again = own if self.name in verdict.rejected else []
        done = [] if again else own
        done += [exchange for exchange in again if exchange.key.step in self.ledger.of(exchange.key.agent)]
        again = [exchange for exchange in again if exchange not in done]
        done += in_hand.take_committed(self.ledger)
        in_hand.give_up_stale(now)
        told = self._steps.tell_committed(done, window, now)
        concluded = self._conclude_round(verdict, now)
        return [*self._tell_weights(), *told, *self._steps.ask_again(again), *concluded]

    def round_failed(self, verdict: Verdict | None, generation: int, now: float) -> list[WorkerAction]:
        """Take notice of a round that has committed nothing: the window stays open, but for a rejected part."""
        self._round_ended(generation, self.window)
        self._no_round_before = now + ROUND_PAUSE_S
        actions: list[WorkerAction] = []
        if verdict is not None and self.name in verdict.rejected:
            taken = self._run.in_hand.empty_window()
            done = [exchange for exchange in taken if exchange.key.step in self.ledger.of(exchange.key.agent)]
            elsewhere = set(verdict.steps)  # in another worker's part, which will be committed
            again = [
                exchange
                for exchange in taken
                if exchange not in done and (exchange.key.agent, exchange.key.step) not in elsewhere
            ]
            actions = [*self._steps.tell_committed(done, self.window, now), *self._steps.ask_again(again)]
        if verdict is not None:
            actions += self._conclude_round(verdict, now)
        return [*actions, *self._say_window(now, closes=False)]

    def take_over(
        self,
        manifest: Manifest,
        ledger: Ledger,
        known_samples: Mapping[str, int],
        *,
        window: int,
        version: int,
        committed_samples: int,
        generation: int,
        now: float,
        selection: Mapping[str, Any] | None = None,
    ) -> list[WorkerAction]:
        """Continue from another worker's weights and ledger; what was under way is asked for again."""
        run = self._run
        if run.selection is not None and selection is not None:
            run.selection.load(selection)
        lost = run.in_hand.start_over(window, version, committed_samples)
        run.manifest, run.ledger = manifest, ledger
        run.digest = bytes.fromhex(manifest.digest())
        run.known_samples = {
            **known_samples,
            **{lease.agent: lease.num_samples for lease in self.leases if not lease.is_visit},
        }
        for lease in self.leases:
            run.leases.set_done(lease, is_done=len(ledger.of(lease.agent)) >= lease.total_steps)
        if run.members is not None:
            run.members.manifest_digest = run.digest
        self._round_ended(generation, window)
        self._roster.await_ledger()
        done = [exchange for exchange in lost if exchange.key.step in ledger.of(exchange.key.agent)]
        again = [exchange for exchange in lost if exchange not in done]
        done += run.in_hand.take_committed(ledger)
        told = [*self._steps.tell_committed(done, window, now), *self._steps.ask_again(again)]
        return [*told, *self._steps.drop_unheld()]

    def _conclude_round(self, verdict: Verdict, now: float) -> list[WorkerAction]:
        """Judge candidates as all replicas do, by what the round's parts say of them."""
        if self._run.selection is None:
            return []
        actions = self.candidates.conclude(verdict.judged, is_over=verdict.is_over)
        actions += self.candidates.offer_now(now) if actions else []
        return [*actions, *self._steps.drop_unheld()]

    def _conclude_alone(self, now: float) -> list[WorkerAction]:
        """Judge candidates as the only worker of a run, once there is enough to judge by."""
        actions = self.candidates.conclude_alone()
        return [*actions, *self.candidates.offer_now(now), *self._steps.drop_unheld()] if actions else []

    def _round_ended(self, generation: int, window: int) -> None:
        self._run.scheduler.is_in_round = False
        self._window_said_at = None
        if self._run.members is not None:
            self._run.members.round_ended(generation, window)

    def _say_window(self, now: float, *, closes: bool, coming: Sequence[Key] = ()) -> list[WorkerAction]:
        self._window_said_at = now
        in_hand = self._run.in_hand
        keys = (*in_hand.in_window, *coming)
        agents = tuple(dict.fromkeys(key.agent for key in keys)) if self._is_synchronous else ()
        num_samples = in_hand.window_samples + sum(in_hand.exchanges[key].num_samples for key in coming)
        state = WindowState(self.name, self.incarnation, self.window, num_samples, agents[:MAX_LIST], closes)
        return [Publish(self._topics.window, state)]

    # What the agents say --------------------------------------------------------------------------------------

    def receive(self, topic: str, message: Message, now: float) -> list[WorkerAction]:
        """Take a message from the broker.

        Args:
            topic: Topic name it came on; it names the agent where the message does not.
            message: The message.
            now: Seconds of the driver's clock.
        """
        match message:
            case Hello() if message.agent != agent_of(topic):
                return [Refused("topic", f"a Hello in the name of {message.agent} on {topic}")]
            case Hello():
                return self._roster.hello(message, now)
            case AgentState():
                return [*self._roster.agent_state(agent_of(topic), message, now), *self._advance()]
            case Telemetry():
                return self._telemetry(agent_of(topic), message, now)
            case WorkerState() | WindowState() if self._run.members is not None:
                return self._pool_says(self._run.members, message)
            case Activations() | OutputGradients() | TrainingDone() | Goodbye():
                lease = self.leases.numbered(message.lease)
                sender = agent_of(topic)
                if lease is None or (sender is not None and sender != lease.agent):
                    return self._unknown_lease(sender, message)
                lease.heard_at, lease.absent_since = now, None
                return self._leased(lease, message, now)
            case _:
                return [Refused("unexpected", f"{type(message).__name__} is not for a worker")]

    def _leased(
        self, lease: Lease, message: Activations | OutputGradients | TrainingDone | Goodbye, now: float
    ) -> list[WorkerAction]:
        try:
            match message:
                case Activations():
                    return self._steps.activations(lease, message, now)
                case OutputGradients():
                    return self._steps.gradients(lease, message, now)
                case TrainingDone():
                    return self._training_done(lease)
                case Goodbye():
                    self.candidates.hear(lease.agent, message.telemetry)
                    return [*self._roster.goodbye(lease, message), *self._advance()]
        except ContentRefused as refused:
            return [*self._roster.refuse(lease, str(refused)), *self._advance()]

    def _telemetry(self, agent: str | None, message: Telemetry, now: float) -> list[WorkerAction]:
        actions = self._roster.telemetry(agent, message, now)
        if agent is not None and self.leases.of(agent) is not None:
            self.candidates.hear(agent, message)
            actions += self._conclude_alone(now)
        return actions

    def _training_done(self, lease: Lease) -> list[WorkerAction]:
        if actions := self._roster.training_done(lease):
            return actions
        actions = self._advance()
        if not actions and self.phase in (RunPhase.EVALUATING, RunPhase.ENDED):
            phase = Phase(lease.lease, self.phase, self.reason)  # the first may have been lost
            actions.append(Publish(AgentTopics(lease.agent).down_control, phase, repeated=True))
        return actions

    def _unknown_lease(self, sender: str | None, message: Message) -> list[WorkerAction]:
        refused = Refused("lease", f"{type(message).__name__} under an unknown lease")
        if isinstance(message, Goodbye):
            return [*self._roster.late_goodbye(message), *self._advance()]
        if sender is None or not isinstance(message, Activations | OutputGradients):
            return [refused]
        mode = message.mode if isinstance(message, Activations) else Mode.TRAIN
        resend = Resend(message.lease, message.step, mode, ResendReason.LEASE)
        return [refused, Publish(AgentTopics(sender).down_control, resend)]

    def _pool_says(self, members: PoolMembers, message: WorkerState | WindowState) -> list[WorkerAction]:
        if isinstance(message, WindowState):
            members.heard_window(message)
            return []
        members.heard_state(message)
        return self._advance() if self._is_serving else []

    # Inside ---------------------------------------------------------------------------------------------------

    def _tell_weights(self) -> list[WorkerAction]:
        """Send the tokenizers' weights to all agents after so many windows, before these windows' commits."""
        is_due = self.window % self.manifest.tokenizers.every_windows == 0
        return self._run.tell_weights(self.leases) if is_due else []

    def _advance(self) -> list[WorkerAction]:
        """Enter the next phase when its time has come.

        After a resume the ledger's agents are waited for: some may have left for good, and the first to come back may
        be the one that has done all its steps. Nobody is waited for longer than the grace period. A worker that joins
        a pool trains as soon as the others do, and ends with them when no agent has come to it.
        Visits count for nothing.
        """
        run, num_agents = self._run, self.leases.num_taking_part
        if run.limits.only_visits:
            return []
        others, reason = (RunPhase.WAITING, "") if run.members is None else run.members.furthest_phase()
        if self.phase is RunPhase.WAITING:
            num_needed = 1 if self._roster.is_resumed and not self._roster.awaits else run.limits.min_agents
            if num_agents >= num_needed or others is not RunPhase.WAITING:
                return self._enter_kept() or self._enter(RunPhase.TRAINING, "")
            return []
        if run.limits.is_service or self._roster.awaits:
            return []
        if self.phase is RunPhase.TRAINING and (kept := self._enter_kept()):
            return kept
        if run.selection is None and self._is_over():
            return self._enter(RunPhase.EVALUATING, "all agents have done their epochs")
        if self.phase is RunPhase.EVALUATING and not num_agents:
            return self._enter(RunPhase.ENDED, self.reason)
        if self.phase is not RunPhase.ENDED and others is RunPhase.ENDED and not num_agents:
            return self._enter(RunPhase.ENDED, reason)
        return []

    def _is_over(self) -> bool:
        """Return whether all agents that are here have done their epochs.

        With nobody left the run is not over: it waits for whoever comes (back).
        """
        run, num_agents = self._run, self.leases.num_taking_part
        if self.phase is not RunPhase.TRAINING or run.limits.is_service or self._roster.awaits:
            return False
        others_train = run.members is not None and run.members.num_training_agents > num_agents
        return bool(num_agents) and not self.leases.training() and not others_train

    def _enter_kept(self) -> list[WorkerAction]:
        """Go on to the evaluation of weights that were chosen before: by an earlier process, or by the pool."""
        selection = self._run.selection
        if selection is None or not selection.is_restored or not self.leases.num_taking_part:
            return []
        return self._enter(RunPhase.EVALUATING, selection.reason())

    def _enter(self, phase: RunPhase, reason: str) -> list[WorkerAction]:
        self._run.phase, self._run.reason = phase, reason
        # The finished model is evaluated with the last weights.
        tell = self._run.tell_weights(self.leases) if phase is RunPhase.EVALUATING else []
        tell += [
            Publish(AgentTopics(lease.agent).down_control, Phase(lease.lease, phase, reason)) for lease in self.leases
        ]
        return [PhaseReached(phase, reason), *tell, self.state()]
