"""Drives one worker: joins session, transport, engine and checkpoints. Every wait of the worker is in `run`.

`pump` handles what has arrived and then computes at most one thing, so that messages never wait for more than one
forward or backward pass.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from cutlayer.broker.actions import (
    AgentJoined,
    AgentLeft,
    Duplicate,
    Fail,
    PhaseReached,
    Publish,
    Refused,
    Subscribe,
    TelemetryReceived,
    Unsubscribe,
    WorkerAction,
)
from cutlayer.broker.courier import Courier
from cutlayer.broker.errors import BrokerUnreachable, IdentityTaken, RunError, WireError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Direction, Mode, RunManifest, RunPhase, WorkerState, serialize
from cutlayer.broker.model_chunks import cut_model
from cutlayer.broker.tensors import decode_tensor, encode_tensor
from cutlayer.broker.topics import RUN, WORKER_STATES, WorkerTopics, model_chunk
from cutlayer.broker.transport import Connected, Disconnected, Received, Transport, Will
from cutlayer.broker.work import Backward, Commit, Forward, Key, Release, Work
from cutlayer.broker.worker_session import WorkerSession
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointNotSaved, CheckpointStore
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.engine import Engine, ForwardItem
from cutlayer.server_worker.events import (
    AgentCountChanged,
    CheckpointSaved,
    ConnectionChanged,
    DuplicateReceived,
    EventHandler,
    MessageRefused,
    PhaseChanged,
    StageTimed,
    TelemetryTaken,
    WindowCommitted,
)
from cutlayer.server_worker.run_book import RunBook

__all__ = ["WorkerOptions", "WorkerRuntime"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker behaves.

    Attributes:
        connect_timeout_s: How long the first connection is tried.
        claim_s: How long it looks for another worker that already serves a run here.
        checkpoint_every_windows: Windows from one checkpoint to the next.
    """

    connect_timeout_s: float = 20.0
    claim_s: float = 0.5
    checkpoint_every_windows: int = 50


class WorkerRuntime:
    """One worker, from its connection to the end of the run.

    Args:
        transport: The connection, not yet connected.
        session: The conversation.
        engine: The arithmetic.
        manifest: The run.
        tokenizer_file: Client-side weights, safetensors.
        book: Takes the agents' counters.
        checkpoints: Where to save, or None.
        on_event: Takes events.
        url: The broker's address, for errors.
        options: How the worker behaves.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        transport: Transport,
        session: WorkerSession,
        engine: Engine | CountingEngine,
        manifest: Manifest,
        tokenizer_file: bytes,
        book: RunBook,
        *,
        checkpoints: CheckpointStore | None = None,
        on_event: EventHandler = lambda _: None,
        url: str = "memory",
        options: WorkerOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._courier = Courier(transport, Direction.DOWN)
        self._session = session
        self._engine = engine
        self._manifest = manifest
        self._tokenizer_file = tokenizer_file
        self._checkpoints = checkpoints
        self._emit = on_event
        self._url = url
        self._options = options or WorkerOptions()
        self._clock = clock
        self._topics = WorkerTopics(session.name)
        self._codecs = manifest.codecs
        self._groups: dict[int, int] = {}
        self._started_at = clock()
        self._was_connected = False
        self._problem = ""
        self._warned_of: set[str] = set()
        self._claimed_at: float | None = None
        self._is_serving = False
        self._was_announced = False
        self.book = book
        self.is_connected = False
        self.training_started_at: float | None = None
        self.last_commit_at: float | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended."""
        return self._session.phase is RunPhase.ENDED

    def start(self) -> None:
        """Start connecting, with a will that says offline."""
        self._transport.connect(Will(self._topics.state, serialize(self._offline())))

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Serve until the run has ended or `should_stop` says so; then save and say goodbye.

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
            self.stop()
            is_graceful = True
        except IdentityTaken:
            is_graceful = True  # the other process speaks for this worker now, and the will would contradict it
            raise
        finally:
            # Whatever else ended this worker, the will tells its agents so.
            self._transport.close(graceful=is_graceful)

    def stop(self) -> None:
        """Save what is committed and tell everybody that this worker is gone."""
        self.save_checkpoint()
        if not self.is_connected:
            return
        self._courier.send(Publish(self._topics.state, self._offline(), retain=True))
        if self.is_finished:  # nobody needs them any more: the broker forgets them
            self._transport.publish(RUN, b"", retain=True)
            for chunk in cut_model(self._tokenizer_file):
                topic = model_chunk(self._manifest.tokenizers.digest, chunk.index)
                self._transport.publish(topic, b"", retain=True)

    def pump(self, now: float) -> float:
        """Handle what has arrived, then compute at most one thing.

        Returns:
            The time at which there is something to do; `now` when there is more at once.

        Raises:
            CutlayerError: When the worker cannot go on.
        """
        for event in self._transport.poll():
            match event:
                case Received():
                    self._take(event, now)
                case Connected():
                    self._connected(event, now)
                case Disconnected():
                    self._disconnected(event)
        if not self._was_connected and now - self._started_at > self._options.connect_timeout_s:
            detail = f"no connection within {self._options.connect_timeout_s:g} s"
            raise BrokerUnreachable(self._url, f"{detail} ({self._problem})" if self._problem else detail)
        if self._claimed_at is not None and not self._is_serving and now >= self._claimed_at:
            self._serve()
        if not self._is_serving:
            return now + 0.05
        self._do(self._session.tick(now))
        work = self._session.next_work(now)
        if work is not None:
            self._compute(work)
            return now
        return min(now + 1.0, self._session.next_deadline(now) or now + 1.0)

    # Connection -----------------------------------------------------------------------------------------------

    def _connected(self, event: Connected, now: float) -> None:
        self._was_connected = self.is_connected = True
        self._emit(ConnectionChanged(is_connected=True))
        log.info("connected to %s (packets up to %d B)", self._url, event.max_packet_bytes)
        self._transport.subscribe(WORKER_STATES)
        if self._is_serving:
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
        self.is_connected = False

    def _serve(self) -> None:
        self._is_serving = True
        for chunk in cut_model(self._tokenizer_file):
            topic = model_chunk(self._manifest.tokenizers.digest, chunk.index)
            self._courier.send(Publish(topic, chunk, retain=True))
        self._courier.send(Publish(RUN, RunManifest(self._manifest.to_bytes()), retain=True))
        self._do(self._session.connected())
        log.info("serving run %s as %s", self._manifest.run_id, self._session.name)

    def _offline(self) -> WorkerState:
        return WorkerState(
            online=False,
            worker=self._session.name,
            incarnation=self._session.incarnation,
            manifest_digest=bytes.fromhex(self._manifest.digest()),
            phase=self._session.phase,
            agents=0,
            version=self._session.version,
            reason=self._session.reason,
        )

    # Messages in, actions out ---------------------------------------------------------------------------------

    def _take(self, packet: Received, now: float) -> None:
        before = self._courier.rejects.copy()
        message = self._courier.receive(packet)
        for label in self._courier.rejects - before:
            self._refused(label, f"a packet on {packet.topic} breaks the protocol")
        try:
            match message:
                case None:
                    pass
                case WorkerState():
                    self._other_worker(message)
                case _:
                    self._do(self._session.receive(packet.topic, message, now))
        except WireError as error:
            self._refused(error.label, f"{packet.topic}: {error}")

    def _refused(self, label: str, detail: str) -> None:
        # Whoever sends nonsense sends it again and again: the first is told, all are counted.
        log.log(logging.DEBUG if label in self._warned_of else logging.WARNING, "refused (%s): %s", label, detail)
        self._warned_of.add(label)
        self._emit(MessageRefused(label))

    def _other_worker(self, state: WorkerState) -> None:
        if state.worker == self._session.name:
            self._was_announced |= state.incarnation == self._session.incarnation
            # Where two processes take the MQTT session from each other, the newer one's will is all that the older
            # sees of it. At the start it may be of a process from before this machine's clock was put back.
            if state.incarnation > self._session.incarnation and (state.online or self._was_announced):
                raise IdentityTaken(state.worker)
        elif state.online and not self._is_serving:
            raise RunError(
                f"worker {state.worker} already serves a run on this broker\n"
                "  fix: stop it, or use another broker: replicas of one encoder are not in this release"
            )

    def _do(self, actions: list[WorkerAction]) -> None:
        for action in actions:
            match action:
                case Publish():
                    self._courier.send(action)
                case Subscribe():
                    self._transport.subscribe(action.topic_filter)
                case Unsubscribe():
                    self._transport.unsubscribe(action.topic_filter)
                case AgentJoined():
                    log.info(
                        "agent %s %s with %d samples",
                        action.agent,
                        "is back" if action.returning else "joined",
                        action.num_samples,
                    )
                    self._emit(AgentCountChanged(len(self._session.leases)))
                case AgentLeft():
                    log.info("agent %s left: %s", action.agent, action.reason)
                    self._courier.forget(action.agent)
                    self._emit(AgentCountChanged(len(self._session.leases)))
                case TelemetryReceived():
                    previous = self.book.of(action.agent, action.telemetry.incarnation)
                    if self.book.take(action.agent, action.telemetry):
                        self._emit(TelemetryTaken(action.agent, action.telemetry, previous))
                case PhaseReached():
                    self._phase_reached(action)
                case Duplicate():
                    self._emit(DuplicateReceived(action.kind))
                case Refused():
                    self._refused(action.label, action.detail)
                case Fail():
                    raise action.error

    def _phase_reached(self, action: PhaseReached) -> None:
        log.info("the run is %s%s", action.phase, f": {action.reason}" if action.reason else "")
        if action.phase is RunPhase.TRAINING and self.training_started_at is None:
            self.training_started_at = self._clock()
        self._emit(PhaseChanged(action.phase))

    # Work -----------------------------------------------------------------------------------------------------

    def _compute(self, work: Work) -> None:
        match work:
            case Forward():
                self._forward(work)
            case Backward():
                self._backward(work)
            case Commit():
                self._commit(work)
            case Release():
                if work.group in self._groups:
                    self._engine.release(self._groups.pop(work.group))

    def _forward(self, work: Forward) -> None:
        items: list[ForwardItem] = []
        mode: Literal["train", "eval"] = "train" if work.mode is Mode.TRAIN else "eval"
        with self._timed("decode", 0):
            for key, message in work.microbatches:
                try:
                    tokens = {
                        name: decode_tensor(tensor, what=f"activations of {name}") for name, tensor in message.tensors
                    }
                except WireError as error:
                    self._do(self._session.fail_content(key, str(error)))
                    continue
                items.append(ForwardItem(_engine_key(key), mode, tokens))
        if not items:
            return
        with self._timed("forward", sum(item.num_samples for item in items)):
            forwarded = self._engine.forward(items)
        if forwarded.refused and not forwarded.outputs and not self._is_sound(items[0]):
            raise RunError(self._diverged("outputs", forwarded.version))
        for key, _ in work.microbatches:
            if _engine_key(key) in forwarded.refused:
                self._do(self._session.fail_content(key, "its activations give outputs that are not finite"))
        if forwarded.group_id is not None:
            self._groups[work.group] = forwarded.group_id
        with self._timed("encode", 0):
            outputs = {
                key: encode_tensor(self._codec_of(key, "outputs"), forwarded.outputs[_engine_key(key)])
                for key, _ in work.microbatches
                if _engine_key(key) in forwarded.outputs
            }
        self._do(self._session.forwarded(work.group, outputs, forwarded.version, self._clock()))

    def _is_sound(self, like: ForwardItem) -> bool:
        """Whether the weights give finite outputs for zeros: then it is the activations that do not."""
        zeros = {name: np.zeros_like(tokens) for name, tokens in like.tokens.items()}
        return not self._engine.forward([ForwardItem(("", "eval", 0), "eval", zeros)]).refused

    def _backward(self, work: Backward) -> None:
        gradients: dict[Hashable, NDArray[np.float32]] = {}
        for key, tensor in work.gradients:
            try:
                gradients[_engine_key(key)] = decode_tensor(tensor, what="output gradients")
            except WireError as error:
                self._do(self._session.fail_content(key, str(error)))
                return  # the session has taken the member out of its group and asks again
        with self._timed("backward", sum(len(gradient) for gradient in gradients.values())):
            result = self._engine.backward(self._groups[work.group], gradients, last=work.last)
        if result.refused:
            raise RunError(self._diverged("gradients", self._engine.version))
        if work.last:
            del self._groups[work.group]
        self._do(self._session.backward_done(work.group, self._clock()))

    def _commit(self, work: Commit) -> None:
        with self._timed("commit", work.num_samples):
            result = self._engine.commit(work.num_samples, work.progress)
        if not result.applied:
            raise RunError(self._diverged("gradients", result.version))
        now = self._clock()
        self.last_commit_at = now
        actions = self._session.committed(result.version, now)
        self._do(actions)
        self._emit(
            WindowCommitted(
                window=self._session.window,
                num_samples=work.num_samples,
                num_microbatches=work.num_microbatches,
                version=result.version,
                gradient_norm=result.gradient_norm,
                learning_rate=result.learning_rate,
                live_samples=self._engine.live_samples,
            )
        )
        if self._session.window % self._options.checkpoint_every_windows == 0:
            self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Save weights, optimizer, counters and ledger; a full disk is reported and the run goes on."""
        if self._checkpoints is None:
            return
        start = time.perf_counter()
        session = self._session
        meta: dict[str, JsonValue] = {
            "manifest": self._manifest.to_bytes().decode(),
            "window": session.window,
            "committed_samples": session.committed_samples,
        }
        try:
            self._checkpoints.save(Checkpoint(self._engine.state_dict(), session.ledger.to_bytes(), meta))
        except CheckpointNotSaved as error:
            log.warning("%s", error)
            return
        self._emit(CheckpointSaved(session.window, time.perf_counter() - start))

    def _codec_of(self, key: Key, kind: str) -> str:
        lease = self._session.leases.of(key.agent)
        codec: str = getattr(lease.codecs if lease is not None else self._codecs, kind)
        return codec

    def _diverged(self, what: str, version: int) -> str:
        return (
            f"training has diverged: {what} are not finite at version {version} of the weights\n"
            "  fix: lower [optimizer] lr, or set clip_norm; then start the run again, or --resume an earlier checkpoint"
        )

    @contextmanager
    def _timed(self, stage: str, num_samples: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._emit(StageTimed(stage, time.perf_counter() - start, num_samples))


def _engine_key(key: Key) -> tuple[str, str, int]:
    # Plain values: the key seeds modality dropout by its repr, which must be the same in every process.
    return key.agent, key.mode.value, key.step
