"""Real brokers, the in-memory one, and clients of them, for tests. Plain functions and context managers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import pytest

from cutlayer.broker.broker_options import BrokerOptions
from cutlayer.broker.broker_settings import BrokerSettings, ProtocolChoice
from cutlayer.broker.launcher import BrokerProcess, launch_broker
from cutlayer.broker.launcher_mosquitto import find_mosquitto
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.transport import Connected, Disconnected, Received, Transport, TransportEvent, Will
from support.ports import free_port

TIMEOUT_S = 120.0
"""Only a failing test waits so long."""

needs_mosquitto = (
    pytest.mark.mosquitto,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
)
"""Marks of a parameter: `pytest.param("mosquitto", marks=needs_mosquitto)`."""


def mosquitto_test(test: Any) -> Any:
    """Mark a test, or a class of tests, that needs Mosquitto."""
    for mark in needs_mosquitto:
        test = mark(test)
    return test


BROKER_KINDS = ["amqtt", pytest.param("mosquitto", marks=needs_mosquitto)]
"""Parameters of a test that runs over every broker of ours."""

TRANSPORTS = [
    "memory",
    "amqtt",
    pytest.param("mosquitto-3.1.1", marks=needs_mosquitto),
    pytest.param("mosquitto-5", marks=needs_mosquitto),
]
"""Parameters of a test that runs over every transport."""

_unique = itertools.count()


def unique(name: str) -> str:
    """Return a name that no other test of this process uses, so that tests can share a broker."""
    return f"{name}-{next(_unique)}"


def running_broker(kind: Literal["auto", "amqtt", "mosquitto"], **options: Any) -> BrokerProcess:
    """Start a broker on a free port of the loopback interface; use as a context manager.

    The port stays the broker's own while the broker is away (`free_port`), so that it can come back.
    """
    return launch_broker(BrokerOptions(kind=kind, **({"port": free_port()} | options)))


Event = TypeVar("Event", bound=TransportEvent)


@dataclass
class Client:
    """A transport and the events it has had; a context manager that closes it."""

    transport: Transport
    events: list[TransportEvent] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.transport.close(graceful=kind is None)

    def pump(self) -> None:
        """Take the events that have come."""
        self.events += self.transport.poll()

    def until(self, satisfied: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Pump until a condition holds, or fail."""
        end_s = time.monotonic() + timeout_s
        self.pump()
        while not satisfied():
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                pytest.fail(f"no {what} within {timeout_s} s; there were {self.events}")
            self.transport.wait(min(left_s, 0.1))
            self.pump()

    def next(self, kind: type[Event], timeout_s: float = TIMEOUT_S) -> Event:
        """Wait for the next event of a kind and take it out; other kinds stay."""

        def found() -> list[Event]:
            return [event for event in self.events if isinstance(event, kind)]

        self.until(found, kind.__name__, timeout_s)
        event = found()[0]
        self.events = [other for other in self.events if other is not event]
        return event

    def receive(self, count: int = 1, timeout_s: float = TIMEOUT_S) -> list[Received]:
        """Wait for so many packets and take them out."""
        return [self.next(Received, timeout_s) for _ in range(count)]

    def connect(self, will: Will | None = None, *filters: str) -> Connected:
        """Subscribe, connect, and wait until that is done."""
        for topic_filter in filters:
            self.transport.subscribe(topic_filter)
        self.transport.connect(will)
        return self.next(Connected)

    def expect_nothing(self, kind: type[TransportEvent] = Received, for_s: float = 0.15) -> None:
        """Fail when an event of a kind comes within a while."""
        end_s = time.monotonic() + for_s
        while (left_s := end_s - time.monotonic()) > 0:
            self.transport.wait(left_s)
            self.pump()
        assert not [event for event in self.events if isinstance(event, kind)]

    def delivered(self) -> None:
        """Wait until everything published has reached the broker."""
        self.until(lambda: self.transport.pending_bytes() == 0, "empty outbox")

    def fatal(self) -> Exception:
        """Wait for a `Disconnected` that is fatal, and return its error."""

        def found() -> list[Exception]:
            return [event.fatal for event in self.events if isinstance(event, Disconnected) and event.fatal]

        self.until(found, "fatal Disconnected")
        return found()[0]


@dataclass
class Backend:
    """One kind of transport, with its broker running.

    `tells_takeover`: its broker says that a session was taken over. Mosquitto 2.0.11 does not, even in MQTT 5.
    """

    name: str
    make: Callable[[str], Transport]
    stack: ExitStack
    tells_takeover: bool

    def client(self, name: str = "client", *, exact: bool = False) -> Client:
        """Make a client, closed at the end of the test; its identifier is unique unless `exact`."""
        return self.stack.enter_context(Client(self.make(name if exact else unique(name))))


def mqtt_client(url: str, client_id: str, *, protocol: ProtocolChoice = "auto", **settings: Any) -> Client:
    """Make a client of a real broker; use as a context manager."""
    return Client(MqttTransport(BrokerSettings(url=url, protocol=protocol, **settings), client_id))


@contextmanager
def transports(name: str) -> Iterator[Callable[[ExitStack], Backend]]:
    """Run the broker of one of `TRANSPORTS`; the value makes a backend for one test from it."""
    if name == "memory":
        memory = MemoryBroker(time.monotonic)
        yield lambda stack: Backend(name, lambda client_id: MemoryTransport(memory, client_id), stack, True)
        return
    kind: Literal["amqtt", "mosquitto"] = "amqtt" if name == "amqtt" else "mosquitto"
    protocol: ProtocolChoice = "5" if name.endswith("-5") else "3.1.1"

    with running_broker(kind) as broker:
        settings = BrokerSettings(url=broker.url, protocol=protocol)
        yield lambda stack: Backend(name, lambda client_id: MqttTransport(settings, client_id), stack, False)
