"""What `cutlayer top` knows: a run and its workers, from topics under `cutlayer/` alone.

Workers publish their metrics every few seconds (`WorkerReport`), for whoever listens; the run manifest and the
workers' states are retained. No agent's topic is read, nothing is published, and no process of the run takes notice.

A picture of all values (`query.Snapshot`) is taken when every worker that is there has reported again, so that a rate
over two pictures is of the same stretch of time for each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from cutlayer.broker.courier import Courier
from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Direction, RunManifest, RunPhase, WorkerReport, WorkerState
from cutlayer.broker.topics import RUN, WORKER_REPORTS, WORKER_STATES
from cutlayer.broker.transport import Connected, Disconnected, Received, Transport
from cutlayer.dashboards.catalogue import metric
from cutlayer.dashboards.headlines import Headline, headlines
from cutlayer.dashboards.live_history import History
from cutlayer.dashboards.metric_declaration import Kind
from cutlayer.dashboards.metric_store import Distribution, MetricStore, SeriesKey
from cutlayer.dashboards.overview_board import OVERVIEW
from cutlayer.dashboards.snapshots import Snapshot, Snapshots
from cutlayer.simulation.top_state import TopState, WorkerSeen, agent_rows

__all__ = ["RATE_S", "TopFeed"]

log = logging.getLogger(__name__)

RATE_S: Final = 15.0
"""What a rate looks back, as in Grafana with the shipped settings."""
NUM_KEPT: Final = 300
"""Pictures of the lines: ten minutes at one every two seconds, more than any terminal is wide."""
SILENT_AFTER: Final = 5.0
"""A worker that has not reported for so many of its own intervals counts no longer."""
WAIT_FOR_OTHERS: Final = 1.5
"""News wait for the other workers' for so many intervals at most."""
MAX_WORKERS: Final = 1_024
MAX_VALUE: Final = 2.0**64
"""No figure of a run is larger. Sums of larger ones could be infinite, which nothing can draw."""


@dataclass(slots=True)
class _Worker:
    state: WorkerState | None = None
    report: WorkerReport | None = None
    numbers: dict[SeriesKey, float] = field(default_factory=dict)
    distributions: dict[SeriesKey, Distribution] = field(default_factory=dict)
    reported_at: float = 0.0
    is_new: bool = False
    """Whether it has reported since the last picture."""


class TopFeed:
    """Follows whatever run is on a broker.

    Args:
        transport: A connection of its own.
        url: What to call the broker.
        clock: Monotonic seconds.

    Attributes:
        is_connected: Whether there is a connection.
        has_connected: Whether there ever was one.
        problem: Why there is none, as the transport has said last.
    """

    def __init__(self, transport: Transport, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_connected = False
        self.has_connected = False
        self.problem = ""
        self._transport = transport
        self._url = url
        self._clock = clock
        # It sends nothing; workers' messages are what it receives.
        self._courier = Courier(transport, Direction.UP)
        self._manifest: Manifest | None = None
        self._workers: dict[str, _Worker] = {}
        self._begin_anew()

    def start(self) -> None:
        """Start connecting."""
        for topic_filter in (RUN, WORKER_STATES, WORKER_REPORTS):
            self._transport.subscribe(topic_filter)
        self._transport.connect(None)

    def pump(self) -> bool:
        """Take what has arrived; return whether there is a new picture.

        Raises:
            CutlayerError: When the broker refuses this client for good.
        """
        for event in self._transport.poll():
            match event:
                case Received():
                    self._take(event)
                case Connected():
                    self.is_connected = self.has_connected = True
                case Disconnected():
                    self.is_connected = False
                    self.problem = event.reason.removeprefix(f"no connection to {self._url}: ")
                    if event.fatal is not None:
                        raise event.fatal
        return self._look()

    def wait(self, timeout_s: float) -> None:
        """Sleep until something has arrived or `timeout_s` seconds have passed."""
        self._transport.wait(timeout_s)

    def close(self) -> None:
        """Disconnect."""
        self._transport.close()

    @property
    def num_pictures(self) -> int:
        """Pictures of this run so far; rates need two."""
        return self._history.num_taken

    def state(self) -> TopState:
        """Return all that is known now."""
        now = self._clock()
        state = TopState(
            url=self._url,
            is_connected=self.is_connected,
            problem=self.problem,
            manifest=self._manifest,
            workers=tuple(self._seen(name, now) for name in sorted(self._workers)),
            series=tuple(self._history.series(0)),
            times=tuple(self._history.times(0)),
            headlines=headlines(self._snapshots),
            agents=tuple(agent_rows(self._snapshots)),
        )
        return replace(state, headlines=_of_now(state))

    def _begin_anew(self) -> None:
        self._history = History(OVERVIEW, NUM_KEPT, RATE_S)
        self._snapshots = Snapshots(RATE_S)
        for worker in self._workers.values():
            worker.report, worker.is_new = None, False

    def _take(self, packet: Received) -> None:
        try:
            match self._courier.receive(packet):
                case RunManifest() as message:
                    self._take_manifest(Manifest.from_bytes(message.document))
                case WorkerState() as state if packet.topic == WORKER_STATES.replace("+", state.worker):
                    self._take_state(state)
                case WorkerReport() as report if packet.topic == WORKER_REPORTS.replace("+", report.worker):
                    self._take_report(report)
                case _:
                    pass
        except MalformedMessage as error:
            log.debug("dropped a message on %s: %s", packet.topic, error)

    def _take_manifest(self, manifest: Manifest) -> None:
        if self._manifest is None or manifest.run_id != self._manifest.run_id:
            self._manifest = manifest
            self._begin_anew()

    def _take_state(self, state: WorkerState) -> None:
        worker = self._worker(state.worker)
        if worker is not None and (worker.state is None or state.incarnation >= worker.state.incarnation):
            worker.state = state

    def _take_report(self, report: WorkerReport) -> None:
        if self._manifest is None or report.run_id != self._manifest.run_id:
            return
        worker = self._worker(report.worker)
        if worker is None:
            return
        known = worker.report
        if known is not None and (known.incarnation, known.sequence) >= (report.incarnation, report.sequence):
            return
        worker.report = report
        worker.numbers, worker.distributions = _numbers_of(report), _distributions_of(report)
        worker.reported_at, worker.is_new = self._clock(), True

    def _worker(self, name: str) -> _Worker | None:
        if name not in self._workers and len(self._workers) >= MAX_WORKERS:
            return None
        return self._workers.setdefault(name, _Worker())

    def _look(self) -> bool:
        """Take a picture if it is time for one: all workers that are there have news, or some have waited for long."""
        now = self._clock()
        present = {name: worker for name, worker in self._workers.items() if _is_present(worker, now)}
        news = [worker for worker in present.values() if worker.is_new]
        if not news:
            return False
        is_complete = len(news) == len(present) and not any(_is_awaited(worker) for worker in self._workers.values())
        longest_s = max(worker.report.every_s for worker in news if worker.report is not None)
        if not is_complete and now < min(worker.reported_at for worker in news) + WAIT_FOR_OTHERS * longest_s:
            return False
        snapshot = Snapshot(
            now,
            {name: worker.numbers for name, worker in present.items()},
            {name: worker.distributions for name, worker in present.items()},
        )
        self._snapshots.add(snapshot)
        self._history.add(time.time(), snapshot)
        for worker in present.values():
            worker.is_new = False
        return True

    def _seen(self, name: str, now: float) -> WorkerSeen:
        worker = self._workers[name]
        return WorkerSeen(
            name,
            worker.state,
            age_s=None if worker.report is None else now - worker.reported_at,
            is_late=worker.report is not None and not _is_present(worker, now),
        )


def _is_present(worker: _Worker, now: float) -> bool:
    """Return whether a worker's numbers count: it has reported lately, and its will has not said that it is gone."""
    report, state = worker.report, worker.state
    if report is None or now - worker.reported_at > SILENT_AFTER * max(report.every_s, 1.0):
        return False
    return state is None or state.online or state.incarnation < report.incarnation


def _is_awaited(worker: _Worker) -> bool:
    """Return whether a worker is online and has not reported yet."""
    return worker.report is None and worker.state is not None and worker.state.online


_EMPTY: Final = MetricStore()


def _of_now(state: TopState) -> tuple[Headline, ...]:
    """Return the answers; whether the run is well the last reports do not tell where no more can come."""
    health, *others = state.headlines
    if not state.is_connected:
        health = replace(health, answer="Not known", detail="No connection to the broker.", meaning="warn")
    elif state.phase is not RunPhase.ENDED and not any(worker.is_online for worker in state.workers):
        health = replace(health, answer="No: no worker", detail="What is shown is from before.", meaning="bad")
    return (health, *others)


def _numbers_of(report: WorkerReport) -> dict[SeriesKey, float]:
    """Return a report's counters and gauges; those of the catalogue that are not in it are 0.

    A name or a form that the catalogue has not is another release's, and left out, as what no worker can have counted.
    """
    numbers = _EMPTY.numbers()
    for found in report.numbers:
        try:
            entry = metric(found.name)
        except KeyError:
            continue
        is_known = entry.kind is not Kind.HISTOGRAM and len(found.labels) == len(entry.labels)
        if is_known and abs(found.value) <= MAX_VALUE:
            numbers[found.name, found.labels] = found.value
    return numbers


def _distributions_of(report: WorkerReport) -> dict[SeriesKey, Distribution]:
    """Return a report's histograms, likewise."""
    distributions = _EMPTY.distributions()
    for found in report.distributions:
        try:
            entry = metric(found.name)
        except KeyError:
            continue
        is_known = entry.kind is Kind.HISTOGRAM and len(found.labels) == len(entry.labels)
        if is_known and len(found.counts) == len(entry.buckets) + 1 and abs(found.total) <= MAX_VALUE:
            distributions[found.name, found.labels] = Distribution(entry.buckets, list(found.counts), found.total)
    return distributions
