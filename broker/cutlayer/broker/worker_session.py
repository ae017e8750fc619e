"""The worker's side of the conversation, without I/O: messages and the time in, actions and work out.

The session joins its parts, each of which has its own file: who may say what (`worker_reception.py`), leases
(`worker_roster.py`), each exchange's state (`worker_steps.py`), which of them are computed next (`scheduler.py`), the
rounds of a pool (`worker_rounds.py`), the weights that are judged (`worker_candidates.py`), and the run's phases
(`worker_phases.py`). Its driver (`cutlayer.server_worker.runtime`) does the actions and the arithmetic.

A *group* is what went forward together: one graph. Its backward pass runs when all its gradients are there, or, in
asynchronous mode, `window.deadline_s` after the first, for those that are there; the graph stays for the others. A
*window* is what one optimizer step commits. Backward passes come before new forward passes, so that live graphs stay
few (design, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping

from cutlayer.broker.actions import Publish, Subscribe, WorkerAction
from cutlayer.broker.leases import LeaseTable
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import EncodedTensor, Message, RunPhase
from cutlayer.broker.pool_members import PoolMembers
from cutlayer.broker.scheduler import Scheduler
from cutlayer.broker.selection import Selection
from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.broker.topics import WORKER_WINDOWS, WorkerTopics, agent_of
from cutlayer.broker.work import Backward, Key, NamedTensors, Work
from cutlayer.broker.work_in_hand import WorkInHand
from cutlayer.broker.worker_candidates import WorkerCandidates
from cutlayer.broker.worker_phases import WorkerPhases
from cutlayer.broker.worker_reception import WorkerReception
from cutlayer.broker.worker_roster import WorkerRoster
from cutlayer.broker.worker_rounds import WorkerRounds
from cutlayer.broker.worker_run import WorkerLimits, WorkerRun
from cutlayer.broker.worker_steps import WorkerSteps
from cutlayer.broker.worker_view import WorkerView

__all__ = ["WorkerLimits", "WorkerSession"]


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
        rounds: Its rounds with the other workers of a pool.
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
        self.name = name
        self.incarnation = incarnation
        self.view = WorkerView(self._run)
        self._topics = WorkerTopics(name)
        self._phases = WorkerPhases(self._run)
        self._steps = WorkerSteps(self._run)
        self.candidates = WorkerCandidates(self._run, self._phases, self._steps)
        self.rounds = WorkerRounds(self._run, self._phases, self._steps, self.candidates)
        self._roster = WorkerRoster(self._run, self._phases, self.candidates)
        self._reception = WorkerReception(self._run, self._phases, self._steps, self.candidates, self._roster)

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
        if (for_candidates := self.rounds.due_for_candidates(now)) is not None:
            return for_candidates
        return run.scheduler.next_work(
            run.leases.training(),
            run.ledger,
            is_training=run.phase is not RunPhase.WAITING,
            credits=run.limits.credits,
            planned_samples=run.planned_samples,
            now=now,
            others=self.rounds.others_in_window(now),
            may_commit=self.rounds.may_begin(now),
            may_evaluate=self.candidates.may_evaluate,
        )

    def next_deadline(self, now: float) -> float | None:
        """Return the time at which `tick` or `next_work` has something to do by the clock alone, or None."""
        parts = (self._roster, self._run.scheduler, self.candidates, self.rounds)
        times = (time for part in parts for time in part.deadlines())
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
        self._run.is_serving = True
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
        """Take the tokenizers' newest weights: at the start, and before each `committed`, here or of `rounds`."""
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
        return self.rounds.tell_part(now, [key for key, _ in work.gradients])

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
        return self.rounds.tell_part(now)

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
        return [*self._run.tell_new_weights(), *self._steps.tell_committed(done, window, now)]

    def fail_content(self, key: Key, detail: str) -> list[WorkerAction]:
        """Refuse an agent for good whose tensors cannot be decoded."""
        self._run.in_hand.discard(key)
        lease = self.leases.of(key.agent)
        return [] if lease is None else [*self._roster.refuse(lease, detail), *self._phases.advance()]

    def end(self, reason: str) -> list[WorkerAction]:
        """End the run now, for a reason of the driver's."""
        return self._phases.enter(RunPhase.ENDED, reason)

    def drain(self) -> list[WorkerAction]:
        """Take nothing new from now on: agents send what is new elsewhere, and what is here goes on to its end."""
        self._run.is_draining = True
        return [self.state()]

    def tick(self, now: float) -> list[WorkerAction]:
        """Do what is due: vanished agents, what the pool must hear again, and the run's next phase."""
        actions = self._roster.tick(now)
        actions += self.candidates.tick(now)
        actions += self.candidates.conclude_alone(now)
        actions += self.rounds.tick(now)
        return actions + self._phases.advance()

    def receive(self, topic: str, message: Message, now: float) -> list[WorkerAction]:
        """Take a message from the broker.

        Args:
            topic: Topic name it came on; it names the agent where the message does not.
            message: The message.
            now: Seconds of the driver's clock.
        """
        return self._reception.receive(topic, message, now)
