"""Looks, before a worker connects, whether another process serves under its name: of two the first keeps it.

A worker's MQTT client identifier is made of its name, so its mere connection would end a namesake's. Hence a connection
of its own, without a will, which reads the retained state of that name:

    none, or offline    nobody is there: a process that was killed has had its will fire
    online              it is asked for a sign of life

It is asked by what a late will of its predecessor would say, a state that is offline and of an earlier process, and not
retained. Agents and the other workers of a pool pass that over, and a process that lives says online again. Draining it
lives not for long, so its end is waited for. One that says nothing for LIFE_S is dead without its will having fired
yet, as after a power cut, and its name is taken.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cutlayer.broker.errors import BrokerUnreachable, RunError, WireError
from cutlayer.broker.messages import WorkerState, parse, serialize
from cutlayer.broker.topics import WorkerTopics
from cutlayer.broker.transport import Connected, Disconnected, Received, Transport

__all__ = ["LIFE_S", "LOOK_S", "NamesakeLook"]

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""A retained state is there so soon after it was asked for."""
LIFE_S = 10.0
"""So long a namesake may be busy with one pass before it says that it lives."""
ASK_EVERY_S = 1.0


class NamesakeLook:
    """Looks for one name, once.

    Args:
        transport: A connection of its own, not yet connected.
        name: The worker's name.
        url: The broker's address, for errors.
        connect_timeout_s: How long the connection is tried.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        *,
        url: str = "memory",
        connect_timeout_s: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._topic = WorkerTopics(name).state
        self._name = name
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock
        self._started_at = clock()
        self._is_connected = False
        self._problem = ""
        self._found: WorkerState | None = None
        self._ask_at = float("inf")
        self._free_at = float("inf")
        self.is_free = False

    def start(self) -> None:
        """Start connecting, without a will: whoever looks says nothing of whom it looks for."""
        self._transport.connect(None)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Look until it is known that the name is free, or `should_stop` says so.

        Raises:
            RunError: When another process serves under the name.
            BrokerUnreachable: When there is no connection.
            CutlayerError: When the broker refuses.
        """
        self.start()
        try:
            while not self.is_free and not should_stop():
                wake_at = self.pump(self._clock())
                self._transport.wait(min(max(wake_at - self._clock(), 0.0), 0.5))
        finally:
            self._transport.close(graceful=True)

    def pump(self, now: float) -> float:
        """Handle what has arrived and what is due.

        Returns:
            When to come back.

        Raises:
            CutlayerError: As `run` does.
        """
        for event in self._transport.poll():
            match event:
                case Connected():
                    self._is_connected = True
                    self._transport.subscribe(self._topic)
                    self._free_at = now + (LOOK_S if self._found is None else LIFE_S)
                case Disconnected():
                    self._disconnected(event)
                case Received() if event.topic == self._topic:
                    self._received(event, now)
        if now >= self._free_at:
            self._take_name()
        elif not self._is_connected and now >= self._started_at + self._connect_timeout_s:
            detail = f"no connection within {self._connect_timeout_s:g} s"
            raise BrokerUnreachable(self._url, f"{detail} ({self._problem})" if self._problem else detail)
        elif self._found is not None and now >= self._ask_at:
            self._ask_at = now + ASK_EVERY_S
            self._ask(self._found)
        return min(self._free_at, self._ask_at, now + 0.5)

    def _disconnected(self, event: Disconnected) -> None:
        if event.fatal is not None:
            raise event.fatal
        if not self._problem:
            log.warning("%s; trying for %g s", event.reason, self._connect_timeout_s)
        self._problem = event.reason.removeprefix(f"no connection to {self._url}: ")
        self._free_at = float("inf")  # nobody can be heard: silence says nothing
        if self._is_connected:
            self._is_connected, self._started_at = False, self._clock()

    def _received(self, packet: Received, now: float) -> None:
        try:
            state = parse(packet.payload) if packet.payload else None
        except WireError:
            return  # the worker itself counts and names it
        if not isinstance(state, WorkerState):
            return
        known = 0 if self._found is None else self._found.incarnation
        if state.incarnation < known:
            return  # another one asks, as this one does
        if not state.online:
            self.is_free = self.is_free or self._found is not None or packet.retain
            return
        if not packet.retain and not state.is_draining:
            raise RunError(
                f"worker {self._name} already serves a run on this broker, in another process\n"
                "  fix: stop that one, use another broker, or give this one a name of its own with --name where "
                "several serve one run (--pool, serve)"
            )
        if self._found is None:
            log.info("worker %s is online: looking for %g s at most whether that process lives", self._name, LIFE_S)
            self._found, self._ask_at, self._free_at = state, now, now + LIFE_S

    def _ask(self, found: WorkerState) -> None:
        before = WorkerState(
            online=False,
            worker=self._name,
            incarnation=max(found.incarnation - 1, 0),
            manifest_digest=found.manifest_digest,
            phase=found.phase,
            agents=0,
            version=0,
            reason="",
        )
        self._transport.publish(self._topic, serialize(before))

    def _take_name(self) -> None:
        if self._found is not None:
            log.warning("worker %s has given no sign of life for %g s: this process takes its name", self._name, LIFE_S)
        self.is_free = True
