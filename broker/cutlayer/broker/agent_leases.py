"""Who serves an agent, and how far the run is: leases granted, kept, and lost.

A lease may be lost in many ways: the worker goes offline, is started anew, does not know it any more, or its run has
ended without the others'. What it held then goes up again elsewhere, and the workers that are left are asked how much
of it, or of what that worker called committed, their ledgers have.
"""

from __future__ import annotations

from dataclasses import fields

from cutlayer.broker.actions import (
    AgentAction,
    Duplicate,
    Fail,
    LeaseGranted,
    LeaseLost,
    LedgerTold,
    PhaseReached,
    Refused,
)
from cutlayer.broker.agent_deadlines import Deadlines
from cutlayer.broker.agent_exchanges import ExchangeTable
from cutlayer.broker.agent_greetings import Greetings
from cutlayer.broker.agent_workers import MAX_WORKERS, KnownWorker, WorkerTable
from cutlayer.broker.errors import MalformedMessage, Rejected, SettingsError
from cutlayer.broker.ledger import StepRanges
from cutlayer.broker.messages import (
    Busy,
    Phase,
    Reject,
    RejectReason,
    RunPhase,
    Welcome,
    WorkerState,
)
from cutlayer.broker.topics import WorkerTopics
from cutlayer.compression import CodecError, codec_from_name

__all__ = ["AgentLeases"]


class AgentLeases:
    """An agent's leases with its workers.

    Args:
        workers: Whom it knows.
        greetings: Asks them.
        exchanges: What they hold.
        deadlines: How long answers are waited for.

    Attributes:
        phase: How far the run is.
    """

    def __init__(
        self, workers: WorkerTable, greetings: Greetings, exchanges: ExchangeTable, deadlines: Deadlines
    ) -> None:
        self.phase = RunPhase.WAITING
        self._workers = workers
        self._greetings = greetings
        self._exchanges = exchanges
        self._deadlines = deadlines
        self._is_leaving = False

    def leave(self) -> None:
        """Take notice that the agent is saying goodbye: leases only end from here on."""
        self._is_leaving = True

    def answer(self, message: Welcome | Busy | Reject, now: float) -> list[AgentAction]:
        """Take the answer to a Hello."""
        worker = self._workers.named(message.worker)
        if worker is not None:
            worker.hear(now)
        match message:
            case Welcome():
                if worker is None:
                    return [Refused("unexpected", f"Welcome from {message.worker}, which is not online")]
                return self._welcome(worker, message, now)
            case Busy():
                if worker is not None:
                    worker.hello_at = now + max(message.retry_after_s, self._deadlines.hello_s)
                return []
            case Reject():
                if worker is not None and message.reason is RejectReason.ENDED:
                    worker.is_over = True
                    if self._goes_on():
                        worker.hello_at = now + self._deadlines.longest_s
                        return self.lose(worker, "its run has ended", now)
                return [Fail(Rejected(message.worker, message.reason, message.detail))]

    def take_phase(self, worker: KnownWorker, message: Phase, now: float) -> list[AgentAction]:
        """Take a phase of the run, which after a goodbye is the answer to it."""
        if message.phase is RunPhase.ENDED and self._is_leaving:
            worker.end_lease()
            return []
        return self._advance(worker, message.phase, message.reason, now)

    def take_state(self, message: WorkerState, now: float) -> list[AgentAction]:
        """Take a worker's retained state."""
        worker = self._workers.named(message.worker)
        if worker is not None and worker.incarnation > message.incarnation:
            return []
        if not message.online:
            if worker is None:
                return []
            actions = self.lose(worker, "it went offline", now)
            self._workers.remove(worker)
            return actions + self._ended_without(message)
        if worker is None:
            try:
                WorkerTopics(message.worker)
            except SettingsError as error:
                return [Refused("topic", error.problem)]
            if len(self._workers) >= MAX_WORKERS:
                return [Refused("workers", f"{message.worker} is one worker more than the {MAX_WORKERS} known")]
            worker = KnownWorker(message.worker, hello_at=now)
            worker.take_state(message)
            self._workers.add(worker)
            return self._greetings.say(worker, now)
        is_new, was_asked = message.incarnation > worker.incarnation, worker.is_asked
        actions = self.lose(worker, "it was started anew", now) if is_new else []
        worker.take_state(message)
        if is_new:
            worker.former.clear()
        if is_new or (worker.is_asked and not was_asked):  # it drains no longer
            actions += self._greetings.say(worker, now)
        if worker.is_over and worker.lease is not None and self._greetings.is_own_run(message.manifest_digest):
            actions += self._advance(worker, message.phase, message.reason, now)
        return actions

    def lose(self, worker: KnownWorker, reason: str, now: float) -> list[AgentAction]:
        """Take back what a worker holds, and ask the others what of it, or of steps before, is committed."""
        if worker.lease is None:
            return []
        self._exchanges.take_back(worker)
        worker.end_lease()
        actions = [LeaseLost(worker.name, reason), *self._reach(""), *self._exchanges.rehome(now)]
        for other in self._workers.leased():
            other.owes_ledger = True
            actions += self._greetings.say(other, now)
        return actions

    # Inside ---------------------------------------------------------------------------------------------------

    def _welcome(self, worker: KnownWorker, message: Welcome, now: float) -> list[AgentAction]:
        """Take a lease, or what is new under the one that there is.

        What was taken back goes up again with the next tick: the driver looks at the ledger first.
        """
        if message.lease in worker.former and (worker.lease is not None or self._is_leaving):
            return [Duplicate("Welcome")]
        try:
            committed = StepRanges(message.committed)
            for entry in fields(message.codecs):
                codec_from_name(getattr(message.codecs, entry.name))
        except (MalformedMessage, CodecError) as error:
            return [Refused("content", f"Welcome from {message.worker}: {error}")]
        worker.hello_wait_s, worker.owes_ledger = 0.0, False
        is_known = worker.lease == message.lease
        if is_known and self._is_leaving:
            return [Duplicate("Welcome")]
        if not is_known:
            self._exchanges.take_back(worker)
            worker.end_lease()
            worker.lease, worker.credits, worker.codecs = message.lease, message.credits, message.codecs
            worker.phase, worker.store, worker.lease_s = message.phase, message.store, message.lease_s
            self.phase = self._workers.phase(self.phase)
        commits = self._exchanges.finish_committed(committed)
        if not is_known:
            return [*commits, LeaseGranted(worker.name, message.committed, self.phase)]
        advance = self._advance(worker, message.phase, "", now)
        return [*commits, LedgerTold(worker.name, message.committed), *advance]

    def _ended_without(self, message: WorkerState) -> list[AgentAction]:
        """Give up when the run has ended and nobody is left to say goodbye to: waiting would be in vain."""
        if message.phase is not RunPhase.ENDED or not self._greetings.is_own_run(message.manifest_digest):
            return []
        if self._is_leaving or self._workers.leased() or self._goes_on():
            return []
        self.phase = RunPhase.ENDED
        return [Fail(Rejected(message.worker, RejectReason.ENDED, f"the run has ended: {message.reason}"))]

    def _goes_on(self) -> bool:
        """Whether the run goes on at a worker that is online."""
        going_on = (worker for worker in self._workers if not worker.is_over)
        return any(self._greetings.is_own_run(worker.manifest_digest) for worker in going_on)

    def _advance(self, worker: KnownWorker, phase: RunPhase, reason: str, now: float) -> list[AgentAction]:
        """Take notice of a worker's phase. One that ends alone commits nothing more: the others take its work."""
        worker.advance(phase)
        actions = self._reach(reason)
        if worker.phase is RunPhase.ENDED and self.phase is not RunPhase.ENDED:
            self._exchanges.take_back(worker)
            actions += self._exchanges.rehome(now)
        return actions

    def _reach(self, reason: str) -> list[AgentAction]:
        """Follow the workers' phases; a step back is no news, and the driver sees it by `phase`."""
        before, self.phase = self.phase, self._workers.phase(self.phase)
        order = tuple(RunPhase)
        return [PhaseReached(self.phase, reason)] if order.index(self.phase) > order.index(before) else []
