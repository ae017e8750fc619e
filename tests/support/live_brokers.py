"""Every pair of broker and protocol, with the packet limit that a test asks for, each able to die and come back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cutlayer.broker import parent_guard
from cutlayer.broker.broker_options import BrokerOptions
from cutlayer.broker.broker_settings import BrokerSettings, ProtocolChoice
from cutlayer.broker.launcher import BrokerProcess, launch_broker
from cutlayer.broker.launcher_mosquitto import find_mosquitto
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.transport import Transport
from support.ports import free_port

__all__ = ["BROKERS", "PERSISTENT_BROKERS", "LiveBroker", "live_broker"]

BROKERS = ("memory", "amqtt", "mosquitto-3.1.1", "mosquitto-5")
PERSISTENT_BROKERS = ("memory", "mosquitto-3.1.1", "mosquitto-5")
"""Those that can keep retained messages over a restart: amqtt keeps nothing."""
READY_TIMEOUT_S = 120.0
UNANNOUNCED_BYTES = 8 << 20
"""What a client would send if its broker announced no limit."""


class LiveBroker(ABC):
    """A broker that runs, and dies and comes back when it is told to."""

    @abstractmethod
    def transport(self, client_id: str) -> Transport:
        """Make a client of it, whose packets are within the limit."""

    @abstractmethod
    def restart(self, *, keeps: bool) -> None:
        """End it and start it again at the same place; with all retained messages, or with nothing."""

    @abstractmethod
    def stop(self) -> None:
        """End it."""


class InMemory(LiveBroker):
    """The in-memory twin, in real time."""

    def __init__(self, limit_bytes: int) -> None:
        self._broker = MemoryBroker(time.monotonic, max_packet_bytes=limit_bytes, reconnect_delay_s=0.1)

    def transport(self, client_id: str) -> Transport:
        """Make a client of it."""
        return MemoryTransport(self._broker, client_id)

    def restart(self, *, keeps: bool) -> None:
        """End it and start it again."""
        kept = list(self._broker.retained.values()) if keeps else []
        self._broker.stop()
        self._broker.start()
        with self._broker.changed:
            for packet in kept:
                self._broker.publish(packet)

    def stop(self) -> None:
        """End it."""
        self._broker.stop()


class Amqtt(LiveBroker):
    """The embedded broker in a process of its own. It has no limit, so its clients are given theirs."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._process: BrokerProcess = launch_broker(BrokerOptions(kind="amqtt", port=free_port()))

    def transport(self, client_id: str) -> Transport:
        """Make a client of it."""
        settings = BrokerSettings(url=self._process.url, protocol="3.1.1", max_packet_bytes=self._limit_bytes)
        return MqttTransport(settings, client_id)

    def restart(self, *, keeps: bool) -> None:
        """End it and start it again."""
        assert not keeps, "amqtt keeps nothing"
        port = self._process.port
        self._process.stop(kill=True)
        self._process = launch_broker(BrokerOptions(kind="amqtt", port=port))

    def stop(self) -> None:
        """End it."""
        self._process.stop()


class Mosquitto(LiveBroker):
    """Mosquitto under a configuration that refuses larger packets and messages.

    MQTT 5 clients are told the limit and heed it; MQTT 3.1.1 clients are not, and have it from their settings.
    """

    def __init__(self, limit_bytes: int, protocol: ProtocolChoice, folder: Path) -> None:
        self._port = free_port()
        own_limit = UNANNOUNCED_BYTES if protocol == "5" else limit_bytes
        url = f"mqtt://127.0.0.1:{self._port}"
        self._settings = BrokerSettings(url=url, protocol=protocol, max_packet_bytes=own_limit)
        self._store = folder / "mosquitto.db"
        self._configuration = folder / "mosquitto.conf"
        lines = [
            f"listener {self._port} 127.0.0.1",
            "allow_anonymous true",
            "set_tcp_nodelay true",
            f"max_packet_size {limit_bytes}",
            f"message_size_limit {limit_bytes}",
            "persistence true",
            f"persistence_location {folder}/",
            "user root",  # where root runs the tests, the folder is root's; nobody else heeds this line
            "log_dest none",
        ]
        self._configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        binary = find_mosquitto()
        assert binary is not None
        guard = [sys.executable, "-I", "-S", str(parent_guard.__file__), str(os.getpid()), "-"]
        program = [str(binary), "-c", str(self._configuration)]
        process = subprocess.Popen([*guard, *program], stderr=subprocess.DEVNULL)
        end_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < end_s and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1.0):
                return process
            time.sleep(0.01)
        process.kill()
        process.wait()
        pytest.fail(f"mosquitto does not answer on port {self._port}")

    def transport(self, client_id: str) -> Transport:
        """Make a client of it."""
        return MqttTransport(self._settings, client_id)

    def restart(self, *, keeps: bool) -> None:
        """End it, by SIGTERM so that it saves what is retained, or by SIGKILL; then start it again."""
        self._end(signal.SIGTERM if keeps else signal.SIGKILL)
        if keeps:
            assert self._store.stat().st_size > 0
        else:
            self._store.unlink(missing_ok=True)
        self._process = self._start()

    def stop(self) -> None:
        """End it."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        self._process.wait()


@contextmanager
def live_broker(name: str, limit_bytes: int, folder: Path) -> Iterator[LiveBroker]:
    """Run one of `BROKERS` that takes packets of at most so many bytes; an empty folder is for its files."""
    broker: LiveBroker
    if name == "memory":
        broker = InMemory(limit_bytes)
    elif name == "amqtt":
        broker = Amqtt(limit_bytes)
    else:
        broker = Mosquitto(limit_bytes, "5" if name.endswith("-5") else "3.1.1", folder)
    try:
        yield broker
    finally:
        broker.stop()
