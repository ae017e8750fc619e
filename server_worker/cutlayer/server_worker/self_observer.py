"""What a worker notes of itself while it works: samples of how things stand, its broker's figures, its reports."""

from __future__ import annotations

from cutlayer.broker.actions import Publish
from cutlayer.broker.courier import Courier
from cutlayer.broker.messages import Direction, Message
from cutlayer.broker.telemetry import TrafficMeter, message_codec
from cutlayer.broker.topics import WorkerTopics
from cutlayer.broker.transport import Received, Transport
from cutlayer.broker.worker_session import WorkerSession
from cutlayer.dashboards.metric_labels import TENSOR_KINDS
from cutlayer.server_worker.broker_figures import FIGURES, SYS, broker_figure
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.events import EventHandler, TensorsMoved, WorkerSampled
from cutlayer.server_worker.worker_reports import WorkerReports

__all__ = ["SelfObserver"]

SAMPLE_EVERY_S = 1.0


class SelfObserver:
    """Looks at one worker from time to time; it decides nothing.

    Args:
        transport: The connection.
        courier: Counts the messages on it; from now on it tells of each one with tensors.
        session: The conversation.
        engine: The arithmetic.
        emit: Takes events.
        reports: Makes what is published; None to publish nothing.
    """

    def __init__(
        self,
        transport: Transport,
        courier: Courier,
        session: WorkerSession,
        engine: Engine | CountingEngine,
        emit: EventHandler,
        reports: WorkerReports | None,
    ) -> None:
        self._transport = transport
        self._courier = courier
        self._session = session
        self._engine = engine
        self._emit = emit
        self._reports = reports
        self._topics = WorkerTopics(session.name)
        self._sample_at = self._report_at = 0.0
        self._to_ask = tuple(FIGURES)
        courier.traffic = _TellingMeter(emit)

    def ask_broker(self) -> None:
        """Subscribe to what the broker tells of itself; it may tell nothing, or forbid to ask.

        It is asked once: the transport remembers over reconnects what it may ask for, and what was denied.
        """
        topics, self._to_ask = self._to_ask, ()
        for topic in topics:
            self._transport.subscribe(topic, qos=0, is_optional=True)

    def takes(self, packet: Received) -> bool:
        """Take a packet that is the broker's own; return whether it was one."""
        if not packet.topic.startswith(SYS):
            return False
        figure = broker_figure(packet)
        if figure is not None:
            self._emit(figure)
        return True

    def look(self, now: float, *, at_once: bool = False) -> None:
        """Take a sample and publish a report, where it is time, or at once.

        It has no deadline of its own: a worker that nobody wakes has nothing new to tell.
        """
        if at_once or now >= self._sample_at:
            self._sample_at = now + SAMPLE_EVERY_S
            self._sample()
        if self._reports is not None and (at_once or now >= self._report_at):
            self._report_at = now + self._reports.every_s(self._session)
            self._courier.send(Publish(self._topics.report, self._reports.make(self._session), qos=0))

    def _sample(self) -> None:
        wire, view = self._transport.wire, self._session.view
        self._emit(
            WorkerSampled(
                wire_sent_bytes=wire.sent_bytes,
                wire_received_bytes=wire.received_bytes,
                traffic=self._courier.traffic.snapshot(),
                open_samples=view.open_samples,
                live_samples=self._engine.live_samples,
                credits_granted=view.credits_granted,
                credits_used=view.credits_used,
                num_workers=view.num_workers,
            )
        )


class _TellingMeter(TrafficMeter):
    """Counts messages, and tells of those with tensors."""

    def __init__(self, emit: EventHandler) -> None:
        super().__init__()
        self._emit = emit

    def add(self, direction: Direction, message: Message, payload_bytes: int, wire_bytes: int) -> None:
        """Count one message."""
        super().add(direction, message, payload_bytes, wire_bytes)
        kind = type(message).__name__
        if kind in TENSOR_KINDS and message_codec(message):  # a commit carries none while tokenizers are frozen
            self._emit(TensorsMoved(direction, kind, payload_bytes))
