"""What must hold in a storm after every event, and how it is looked at without looking at everybody each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from cutlayer.broker.messages import RunPhase
from cutlayer.simulation.storm_books import Books, InvariantBroken, Step
from cutlayer.simulation.storm_members import StormAgent, StormWorker
from cutlayer.simulation.storm_settings import StormSettings
from cutlayer.simulation.virtual import VirtualNetwork

__all__ = ["StormChecks"]


class StormChecks:
    """The invariants of a run.

    After an event only the member that was woken is looked at, and what it may have changed, so that the cost does not
    grow with the number of agents; the whole ledger at each window. `everything` looks at all of it.

    Args:
        settings: Holds the limits.
        network: Who is there.
        books: Compares ledgers with weights.
        agents: The agents' present processes, by topic; may change.
        workers: The workers' present processes, by name; may change.

    Attributes:
        most_live: Most microbatches that were at the workers at one time.
        most_scheduled: Most packets that were under way at one time.
    """

    def __init__(
        self,
        settings: StormSettings,
        network: VirtualNetwork,
        books: Books,
        agents: Mapping[str, StormAgent],
        workers: Mapping[str, StormWorker],
    ) -> None:
        self.most_live = 0
        self.most_scheduled = 0
        self._settings = settings
        self._limits = settings.limits
        self._network = network
        self._books = books
        self._agents = agents
        self._workers = workers
        self._windows: dict[int, int] = {}
        self._steps: dict[int, set[Step]] = {}
        self._settled_at = 0.0

    def after_event(self) -> None:
        """Check what the last event may have broken.

        Raises:
            InvariantBroken: When it has.
        """
        network = self._network
        self.most_scheduled = max(self.most_scheduled, network.broker.num_scheduled)
        most = self._limits.scheduled_packets_per_agent * self._settings.num_agents * self._settings.num_workers
        if network.broker.num_scheduled > most:
            raise InvariantBroken(f"{network.broker.num_scheduled} packets are under way, and {most} may")
        woken = network.last_woken
        if network.clock() > self._settled_at:
            self._settled_at = network.clock()
            for idle in self._workers.values():
                if idle.name != woken:  # it has done all that it could before time moved on
                    _check_graphs(idle)
        if woken is None:
            return
        if worker := self._workers.get(woken):
            self._check_worker(worker)
        elif agent := self._agents.get(woken):
            self._check_agent(agent)

    def everything(self) -> None:
        """Check all of it: whole ledgers, each agent's credits, everybody's view and memory.

        Raises:
            InvariantBroken: When something does not hold.
        """
        for worker in self._workers.values():
            self._windows.pop(worker.session.incarnation, None)
            self._check_worker(worker)
            live = Counter(key.agent for key in worker.session.live_keys())
            greedy = {agent: count for agent, count in live.items() if count > self._settings.credits}
            if greedy:
                raise InvariantBroken(
                    f"more than {self._settings.credits} microbatches are at {worker.name} of {greedy}"
                )
        for agent in self._agents.values():
            self._check_agent(agent)

    def _check_worker(self, worker: StormWorker) -> None:
        session, settings = worker.session, self._settings
        if self._windows.get(session.incarnation) != session.window:
            self._windows[session.incarnation] = session.window
            self._steps[session.incarnation] = self._books.compare(session, worker.engine)
        self.most_live = max(self.most_live, session.num_live)
        if session.num_live > settings.credits * settings.num_agents:
            raise InvariantBroken(f"{session.num_live} microbatches are at {worker.name}: more than all credits")
        _check_memory(
            worker.transport.num_events + worker.transport.num_on_their_way,
            self._limits.worker_packets_per_agent * settings.num_agents,
            worker.unfinished_bytes,
            self._limits.worker_unfinished_bytes_per_agent * settings.num_agents,
            worker.name,
        )

    def _check_agent(self, agent: StormAgent) -> None:
        most = self._settings.credits * self._settings.num_workers
        if agent.num_outstanding > most:
            raise InvariantBroken(f"{agent.topic} has {agent.num_outstanding} microbatches outstanding, and {most} may")
        known: set[Step] = set()
        is_current = True
        for name, number in agent.leases.items():
            worker = self._workers.get(name)
            lease = None if worker is None else worker.session.leases.of(agent.topic)
            if worker is None or lease is None or lease.lease != number:
                is_current = False
                continue
            known |= self._steps.get(worker.session.incarnation, set())
            if worker.session.phase in (RunPhase.WAITING, RunPhase.TRAINING):
                agent.admitted_by.add(worker.session.incarnation)
        # Under a lease of a worker's earlier process it may know of windows that were lost with that process.
        known = known if is_current and agent.leases else self._books.ever
        for start, stop in agent.committed:
            for step in range(start, stop):
                if (agent.topic, step) not in known:
                    raise InvariantBroken(f"{agent.topic} takes step {step} for committed, and no ledger holds it")
        _check_memory(
            agent.transport.num_events + agent.transport.num_on_their_way,
            self._limits.agent_packets,
            agent.unfinished_bytes,
            self._limits.agent_unfinished_bytes,
            agent.topic,
        )


def _check_graphs(worker: StormWorker) -> None:
    """Check that a worker that is idle keeps no graph that nobody needs."""
    num_graphs, num_live = worker.engine.num_live_graphs, worker.session.num_live
    if num_graphs > num_live:
        raise InvariantBroken(f"{num_graphs} graphs are alive at {worker.name} for {num_live} microbatches")


def _check_memory(num_packets: int, most_packets: int, unfinished_bytes: int, most_bytes: int, whose: str) -> None:
    if num_packets > most_packets:
        raise InvariantBroken(f"{num_packets} packets wait at {whose}, and {most_packets} may")
    if unfinished_bytes > most_bytes:
        raise InvariantBroken(
            f"{whose} keeps {unfinished_bytes} B for messages that are not whole, and {most_bytes} may"
        )
