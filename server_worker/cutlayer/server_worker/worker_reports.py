"""What a worker tells of its metrics over the broker, for whoever watches the run from wherever it is."""

from __future__ import annotations

import math

from cutlayer.broker.messages import SeriesDistribution, SeriesNumber, WorkerReport
from cutlayer.broker.reports import MAX_DISTRIBUTIONS, MAX_SERIES
from cutlayer.broker.wire import U53
from cutlayer.broker.worker_session import WorkerSession
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.server_worker.agent_table import AgentTable

__all__ = ["WorkerReports"]

SHORTEST_S = 2.0


class WorkerReports:
    """Makes a worker's reports.

    Args:
        store: The worker's metrics.
        agents: Its table of agents.
    """

    def __init__(self, store: MetricStore, agents: AgentTable) -> None:
        self._store = store
        self._agents = agents
        self._sequence = 0

    def every_s(self, session: WorkerSession) -> float:
        """Return the seconds from one report to the next."""
        return max(session.manifest.telemetry_s, SHORTEST_S)

    def make(self, session: WorkerSession) -> WorkerReport:
        """Return a report of how things stand: all that is not 0.

        Nor what no message can hold: agents may claim any numbers, and nothing that they send stops a worker.
        """
        self._sequence += 1
        numbers = {**self._store.numbers(), **self._agents.numbers()}
        return WorkerReport(
            worker=session.name,
            incarnation=session.incarnation,
            sequence=self._sequence,
            run_id=session.manifest.run_id,
            every_s=self.every_s(session),
            numbers=tuple(
                SeriesNumber(name, labels, value)
                for (name, labels), value in numbers.items()
                if value and math.isfinite(value)
            )[:MAX_SERIES],
            distributions=tuple(
                SeriesDistribution(name, labels, tuple(distribution.counts), distribution.total)
                for (name, labels), distribution in self._store.distributions().items()
                if 0 < distribution.count <= U53 and math.isfinite(distribution.total)
            )[:MAX_DISTRIBUTIONS],
        )
