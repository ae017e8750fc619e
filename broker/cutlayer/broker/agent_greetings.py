"""When an agent says Hello: to each worker that does not serve it, less and less often, and to silent ones."""

from __future__ import annotations

from cutlayer.broker.actions import AgentAction, Publish
from cutlayer.broker.agent_deadlines import Deadlines
from cutlayer.broker.agent_workers import KnownWorker, WorkerTable
from cutlayer.broker.messages import Hello
from cutlayer.broker.topics import WorkerTopics

__all__ = ["Greetings"]


class Greetings:
    """An agent's Hellos.

    Args:
        workers: Whom it knows.
        deadlines: How long answers are waited for.
    """

    def __init__(self, workers: WorkerTable, deadlines: Deadlines) -> None:
        self._workers = workers
        self._deadlines = deadlines
        self._hello: Hello | None = None
        self._not_before: float | None = None
        self._is_over = False

    def connected(self, now: float) -> list[AgentAction]:
        """Ask everybody: the will may have fired, and leases may not stand any more.

        After the first connection a Hello waits for the answer to the identity's claim.
        """
        if self._not_before is None:
            self._not_before = now + self._deadlines.claim_hello_s
        actions: list[AgentAction] = []
        for worker in self._workers:
            worker.hello_at = now
            actions += self.say(worker, now)
        return actions

    def ready(self, hello: Hello, now: float) -> list[AgentAction]:
        """Start asking: what a Hello says is known."""
        self._hello = hello
        return [action for worker in self._workers for action in self.say(worker, now)]

    def stop(self) -> None:
        """Ask nobody any more: the agent is leaving."""
        self._is_over = True

    def is_own_run(self, manifest_digest: bytes) -> bool:
        """Return whether a manifest is the one that leases are asked for."""
        return self._hello is not None and self._hello.manifest_digest == manifest_digest

    def say(self, worker: KnownWorker, now: float) -> list[AgentAction]:
        """Say Hello to a worker, unless it grants no lease any more or it is too early."""
        if self._hello is None or self._is_over or (worker.lease is None and worker.is_draining):
            return []
        if self._not_before is not None and now < self._not_before:
            worker.hello_at = self._not_before
            return []
        wait_s = max(self._deadlines.hello_s, worker.hello_wait_s)
        worker.hello_at = now + wait_s
        worker.hello_wait_s = min(2 * wait_s, self._deadlines.longest_s)
        return [Publish(WorkerTopics(worker.name).inbox_of(self._hello.agent), self._hello)]

    def tick(self, now: float) -> list[AgentAction]:
        """Say the Hellos that are due."""
        due = [worker for worker in self._workers if worker.is_asked and now >= worker.hello_at]
        return [action for worker in due for action in self.say(worker, now)]

    def deadlines(self) -> list[float]:
        """Return the times at which Hellos are due."""
        if self._hello is None or self._is_over:
            return []
        return [worker.hello_at for worker in self._workers if worker.is_asked]
