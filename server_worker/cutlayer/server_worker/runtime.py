"""Drives one worker: joins session, transport, engine and checkpoints. Every wait of the worker is in `run`.

`pump` handles what has arrived and then computes at most one thing, so that messages never wait for more than one
forward or backward pass.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cutlayer.broker.actions import PhaseReached
from cutlayer.broker.courier import Courier
from cutlayer.broker.errors import BrokerUnreachable, IdentityTaken
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Direction, RunPhase, serialize
from cutlayer.broker.telemetry import activation_bytes
from cutlayer.broker.topics import WORKER_STATES, WORKER_WINDOWS, WorkerTopics
from cutlayer.broker.transport import Connected, Disconnected, Received, Transport, Will
from cutlayer.broker.work import Backward, Commit, Forward, Release, Work
from cutlayer.broker.worker_session import WorkerSession
from cutlayer.server_worker.announcement import Announcement
from cutlayer.server_worker.arithmetic import Arithmetic
from cutlayer.server_worker.candidate_keeper import CandidateKeeper
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.dispatcher import Dispatcher
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.events import ConnectionChanged, EventHandler, PhaseChanged
from cutlayer.server_worker.parting import Parting
from cutlayer.server_worker.pool import Pool
from cutlayer.server_worker.rounds import Rounds
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.saver import Saver
from cutlayer.server_worker.self_observer import SelfObserver
from cutlayer.server_worker.store_keeper import StoreKeeper
from cutlayer.server_worker.worker_options import WorkerOptions
from cutlayer.server_worker.worker_reports import WorkerReports

__all__ = ["WorkerRuntime"]

log = logging.getLogger(__name__)

LONGEST_SLEEP_S = 10.0
"""Whoever drives a worker need not come back earlier, when it has no deadline and no news."""


class WorkerRuntime:
    """One worker, from its connection to the end of the run.

    Args:
        transport: The connection, not yet connected.
        session: The conversation.
        engine: The arithmetic.
        tokenizer_file: Client-side weights, safetensors.
        book: Takes the agents' counters.
        checkpoints: Where to save, or None.
        pool: The other replicas of the encoder; None for a worker that trains alone.
        on_event: Takes events.
        reports: Makes what the worker tells of its metrics over the broker; None for nothing.
        url: The broker's address, for errors.
        options: How the worker behaves.
        clock: Seconds, monotonic.
        keeper: Holds the store of activations; None for nothing.
    """

    def __init__(
        self,
        transport: Transport,
        session: WorkerSession,
        engine: Engine | CountingEngine,
        tokenizer_file: bytes,
        book: RunBook,
        *,
        checkpoints: CheckpointStore | None = None,
        pool: Pool | None = None,
        on_event: EventHandler = lambda _: None,
        reports: WorkerReports | None = None,
        url: str = "memory",
        options: WorkerOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        keeper: StoreKeeper | None = None,
    ) -> None:
        self._transport = transport
        self._courier = Courier(transport, Direction.DOWN)
        self._courier.traffic.sample_bytes = activation_bytes(session.manifest)
        self._session = session
        self._engine = engine
        self._options = options or WorkerOptions()
        self._observer = SelfObserver(transport, self._courier, session, engine, on_event, reports)
        self._dispatcher = Dispatcher(
            transport,
            self._courier,
            session,
            book,
            is_pooled=pool is not None,
            on_phase=self._phase_reached,
            emit=on_event,
        )
        self._do = self._dispatcher.do
        self._saver = Saver(checkpoints, session, engine, self._options.checkpoint_every_windows, on_event)
        self._keeper = keeper or StoreKeeper()
        self._arithmetic = Arithmetic(session, engine, self._do, on_event, clock, self._keeper)
        self._tend = CandidateKeeper(session, self._arithmetic, self._do).tend
        self._rounds: Rounds | None = None
        self._parting: Parting | None = None
        if pool is not None:
            self._rounds = Rounds(
                pool, session, self._arithmetic, self._saver.snapshot, self._do, on_event, clock, self._tend
            )
            self._parting = Parting(self._rounds, session, self._options.part_s)
        self._announcement = Announcement(transport, self._courier, tokenizer_file)
        self._emit = on_event
        self._url = url
        self._clock = clock
        self._topics = WorkerTopics(session.name)
        self._started_at = clock()
        self._was_connected = False
        self._problem = ""
        self._claimed_at: float | None = None
        self.book = book
        self.training_started_at: float | None = None

    @property
    def _manifest(self) -> Manifest:
        return self._session.manifest

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to the broker."""
        return self._dispatcher.is_connected

    @property
    def last_commit_at(self) -> float | None:
        """When the last window was committed."""
        return self._arithmetic.last_commit_at

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended, and nobody of the pool has to wait for this worker's weights."""
        return self._session.phase is RunPhase.ENDED and (self._parting is None or self._parting.is_done)

    def start(self) -> None:
        """Start connecting, with a will that says offline."""
        self._transport.connect(Will(self._topics.state, serialize(self._session.state(is_online=False).message)))

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Serve until the run has ended or `should_stop` says so; then finish what is here, save and say goodbye.

        Raises:
            CutlayerError: When the worker cannot go on.
        """
        self.start()
        is_graceful = False
        try:
            while not self.is_finished and not should_stop():
                wake_at = self.pump(self._clock())
                # A signal only sets a flag, so a long wait would keep a person waiting.
                self._transport.wait(min(max(wake_at - self._clock(), 0.0), 0.5))
            if not self.is_finished:
                self._drain()
            self.stop()
            is_graceful = True
        except IdentityTaken:
            is_graceful = True  # the other process speaks for this worker now, and the will would contradict it
            raise
        finally:
            # Whatever else ended this worker, the will tells its agents so.
            self._transport.close(graceful=is_graceful)
            if self._rounds is not None:
                self._rounds.close()
            self._keeper.close()

    def _drain(self) -> None:
        """Finish what agents have outstanding here, while they send what is new elsewhere or wait."""
        if not self._dispatcher.is_serving or not self.is_connected or not self._session.num_live:
            return
        give_up_at = self._clock() + self._options.drain_s
        log.info("finishing %d microbatches", self._session.num_live)
        self.drain()
        while not self.is_drained and not self.is_finished and self._clock() < give_up_at:
            wake_at = self.pump(self._clock())
            self._transport.wait(min(max(wake_at - self._clock(), 0.0), 0.1))

    def drain(self) -> None:
        """Take nothing new from now on; `is_drained` follows."""
        self._do(self._session.drain())

    @property
    def is_drained(self) -> bool:
        """Whether nothing is left of what this worker had when it began to drain."""
        return self._session.is_drained

    def stop(self) -> None:
        """Save what is committed and tell everybody that this worker is gone."""
        if self.is_finished:
            self._saver.save()
            self._keeper.delete()
        else:
            self._saver.save_at_stop()
        if not self.is_connected:
            return
        self._observer.look(self._clock(), at_once=True)
        self._courier.send(self._session.state(is_online=False))
        if self.is_finished:
            self._announcement.withdraw(self._manifest)

    def pump(self, now: float) -> float:
        """Handle what has arrived, then compute at most one thing.

        Returns:
            The time at which there is something to do; `now` when there is more at once.

        Raises:
            CutlayerError: When the worker cannot go on.
        """
        if self._dispatcher.is_serving and self._rounds is not None and self._rounds.poll(now):
            self._saver.save_if_due()  # before agents are told what is committed
        for event in self._transport.poll():
            match event:
                case Received():
                    if not self._observer.takes(event):
                        self._dispatcher.take(event, now)
                case Connected():
                    self._connected(event, now)
                case Disconnected():
                    self._disconnected(event)
        if not self._was_connected and now - self._started_at > self._options.connect_timeout_s:
            detail = f"no connection within {self._options.connect_timeout_s:g} s"
            raise BrokerUnreachable(self._url, f"{detail} ({self._problem})" if self._problem else detail)
        if not self._dispatcher.is_serving:
            self._claim(now)
        if not self._dispatcher.is_serving:
            return now + 0.05
        self._courier.tick(now)
        self._do(self._session.tick(now))
        self._tend(now)
        self._observer.look(now)
        if self._parting is not None and self._session.phase is RunPhase.ENDED:
            self._parting.go_on(now)
        deadlines: list[float | None] = [now + LONGEST_SLEEP_S]
        if self._rounds is not None and not self.is_connected:
            deadlines.append(self._rounds.keep_up(now))
        work = self._session.next_work(now)
        if work is not None:
            self._compute(work, now)
            return now
        deadlines += [self._session.next_deadline(now), self._courier.next_deadline()]
        if self._rounds is not None:
            deadlines.append(self._rounds.next_poll(now))
        return min(time for time in deadlines if time is not None)

    def _claim(self, now: float) -> None:
        """Begin to serve when nobody else does, or, in a pool, when this worker has the pool's weights."""
        if self._claimed_at is None or now < self._claimed_at:
            return
        if self._rounds is not None:
            self._rounds.poll(now)
            if not self._rounds.is_member:
                self._rounds.join(now)
                return
            self.book.adopt(self._manifest)
        self._serve()

    # Connection -----------------------------------------------------------------------------------------------

    def _connected(self, event: Connected, now: float) -> None:
        self._was_connected = self._dispatcher.is_connected = True
        self._emit(ConnectionChanged(is_connected=True))
        log.info("connected to %s (packets up to %d B)", self._url, event.max_packet_bytes)
        self._transport.subscribe(WORKER_STATES)
        if self._options.asks_broker:
            self._observer.ask_broker()
        if self._rounds is not None:
            self._transport.subscribe(WORKER_WINDOWS)
        if self._dispatcher.is_serving:
            self._serve()  # a broker that was restarted may have forgotten everything
        else:
            self._claimed_at = now + self._options.claim_s

    def _disconnected(self, event: Disconnected) -> None:
        if event.fatal is not None:
            raise event.fatal
        if self.is_connected:
            log.warning("connection lost (%s); trying again", event.reason)
            self._emit(ConnectionChanged(is_connected=False))
        elif not self._was_connected and not self._problem:
            log.warning("%s; trying for %g s", event.reason, self._options.connect_timeout_s)
        self._problem = event.reason.removeprefix(f"no connection to {self._url}: ")
        self._dispatcher.is_connected = False
        self._session.disconnected()

    def _serve(self) -> None:
        self._dispatcher.is_serving = True
        self._session.keep_in(self._keeper.open(self._manifest.run_id))
        self._arithmetic.hand_out_weights()
        self._announcement.publish(self._manifest)
        self._do(self._session.connected())
        log.info("serving run %s as %s", self._manifest.run_id, self._session.name)

    # Work -----------------------------------------------------------------------------------------------------

    def _phase_reached(self, action: PhaseReached) -> None:
        log.info("the run is %s%s", action.phase, f": {action.reason}" if action.reason else "")
        if action.phase is RunPhase.TRAINING and self.training_started_at is None:
            self.training_started_at = self._clock()
        self._emit(PhaseChanged(action.phase))
        if action.phase is RunPhase.EVALUATING:
            # Agents leave from here on: a worker that dies now must not wait for them to train again.
            self._saver.save()

    def _compute(self, work: Work, now: float) -> None:
        match work:
            case Forward():
                self._arithmetic.forward(work)
            case Backward():
                self._do(self._session.backward_begun(work, now))
                self._arithmetic.backward(work)
            case Commit() if self._rounds is not None:
                self._rounds.begin(work, now)
            case Commit():
                self._commit(work)
            case Release():
                self._arithmetic.release(work)

    def _commit(self, work: Commit) -> None:
        view = self._session.view
        wanted_samples, members = view.wanted_samples, view.window_members()
        step = self._arithmetic.step(work.num_samples, work.progress)
        self._do(self._session.committed(step.version, self._clock()))
        self._arithmetic.emit_committed(
            step, work.num_samples, work.num_microbatches, wanted_samples=wanted_samples, members=members
        )
        self._tend(self._clock())
        self._saver.save_if_due()
