"""What an agent's uplink does, for the runtime: the pacer, where there is a limit, and the link's own pace."""

from __future__ import annotations

from cutlayer.broker.courier import Courier
from cutlayer.edge_agent.codec_ladder import UplinkState
from cutlayer.edge_agent.link_meter import LinkMeter
from cutlayer.edge_agent.uplink_pacer import UplinkPacer

__all__ = ["Uplink"]


class Uplink:
    """Watches one agent's connection.

    Args:
        courier: Sends its messages.
        max_bytes_per_s: The limit; None for none.
        now: Seconds.

    Attributes:
        is_metered: Whether the link's own pace is measured; it costs looks at what is under way.
        report_bytes: Bytes of reports so far.
    """

    def __init__(self, courier: Courier, max_bytes_per_s: float | None, now: float) -> None:
        self.max_bytes_per_s = max_bytes_per_s
        self.is_metered = False
        self.report_bytes = 0
        self._courier = courier
        self._pacer = None if max_bytes_per_s is None else UplinkPacer(max_bytes_per_s, now)
        self._meter = LinkMeter()
        self._now = now
        self._started_at: float | None = None

    @property
    def paced_s(self) -> float:
        """Seconds that microbatches have waited for the limit."""
        return 0.0 if self._pacer is None else self._pacer.paced_s

    def begin(self, now: float) -> None:
        """Take notice that microbatches begin; only the first call counts."""
        if self._started_at is None:
            self._started_at = now

    def tick(self, now: float) -> None:
        """Count what has left until now."""
        self._now = now
        if self._pacer is not None:
            self._pacer.count(self._sent_bytes(), now)
        if self.is_metered:
            self._meter.count(self._courier.handed_bytes, self._courier.transport.pending_bytes(), now)

    def may_send(self, now: float) -> bool:
        """Return whether a new microbatch may go; where it may not, it waits from now on."""
        if self._pacer is None:
            return True
        self._pacer.count(self._sent_bytes(), now)
        return self._pacer.may_send(now)

    def stop_waiting(self, now: float) -> None:
        """Take notice that no microbatch waits for the limit."""
        if self._pacer is not None:
            self._pacer.stop_waiting(now)

    def next_deadline(self, now: float) -> float | None:
        """Return when to come back for the uplink's sake, or None."""
        times = [None if self._pacer is None else self._pacer.opens_at()]
        times.append(self._meter.next_look(now) if self.is_metered else None)
        return min((time for time in times if time is not None), default=None)

    def state(self) -> UplinkState:
        """Return what is known now."""
        started_at = self._now if self._started_at is None else self._started_at
        return UplinkState(
            self._now, self._sent_bytes(), self.report_bytes, self.paced_s, self._meter.busy_s, started_at
        )

    def _sent_bytes(self) -> int:
        """Return all that has left or is about to: what waits for a socket is not in the transport's count yet."""
        wire = self._courier.transport.wire
        control_bytes = wire.sent_bytes - wire.sent_publish_bytes
        # A packet that MQTT sends again is in the wire's count alone.
        return max(self._courier.handed_bytes, wire.sent_publish_bytes) + control_bytes
