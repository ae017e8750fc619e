"""A paho-mqtt client, set up as measurements say it should be, that counts the bytes of its socket."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from typing import Any

from paho.mqtt.client import Client, SocketLike
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.mqtt_packets import PacketCounter, Protocol
from cutlayer.broker.transport import Will

__all__ = ["CountingClient", "make_client"]

log = logging.getLogger("cutlayer.broker")

CONNECT_TIMEOUT_S = 10.0
RECONNECT_MIN_S = 1
RECONNECT_MAX_S = 30
RECEIVE_LIMIT_BYTES = 16 * 1024 * 1024
"""An MQTT 5 broker sends nothing larger (Maximum Packet Size), so that no peer can fill this process's memory."""
MAX_INFLIGHT_MESSAGES = 10
"""Unacknowledged QoS 1 packets. Throughput is the same from 1 to 100 (measured), and paho-mqtt does not heed the
broker's Receive Maximum, which is 10 at HiveMQ and 20 at Mosquitto: above it they disconnect."""


class CountingClient(Client):
    """paho-mqtt's client with counters at the socket, inside TLS.

    The callbacks cannot give this number: they show no PINGREQ, nothing sent again after a reconnect and no QoS 0
    packet dropped by one. The two methods have had the same names and meaning since paho-mqtt 1.5; a test
    compares the counts with a relay's.
    """

    def __init__(self, protocol: Protocol, client_id: str, sent: PacketCounter, received: PacketCounter) -> None:
        if protocol == "5":
            super().__init__(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5)
        else:
            super().__init__(
                CallbackAPIVersion.VERSION2,
                client_id=client_id,
                clean_session=True,
                protocol=MQTTProtocolVersion.MQTTv311,
            )
        self.last_error: OSError | None = None
        """What the socket said last, since the callbacks only say that the connection is lost."""
        self._sent_count = sent
        self._received_count = received

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            written = super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.last_error = error
            raise
        self._sent_count.feed(memoryview(buf)[:written])
        return written

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            data = super()._sock_recv(bufsize)
        except BlockingIOError:
            raise
        except OSError as error:
            self.last_error = error
            raise
        self._received_count.feed(data)
        return data

    def cut(self) -> None:
        """End the connection as if this process had died: no DISCONNECT, so the broker publishes the will."""
        sock = self.socket()
        if sock is not None:
            with contextlib.suppress(OSError):
                _shut_down(sock)
        self.disconnect()  # on a dead socket this sends nothing; it makes the network thread end

    def dispose(self) -> None:
        """Wait for the network thread, which has been told to end, and close what is left open."""
        self.loop_stop()
        sock = self.socket()
        if sock is not None:
            sock.close()
        # The callbacks refer to the transport and the transport to this client: without the circle, paho-mqtt's
        # own sockets are closed here and now rather than by the garbage collector.
        self.on_connect = self.on_connect_fail = self.on_disconnect = None
        self.on_message = self.on_publish = self.on_subscribe = self.on_socket_open = None


def _shut_down(sock: SocketLike) -> None:
    if isinstance(sock, ssl.SSLSocket):
        # SSLSocket.shutdown would drop the TLS state under the network thread's hands; the socket below will do.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    elif isinstance(sock, socket.socket):
        sock.shutdown(socket.SHUT_RDWR)


def make_client(
    settings: BrokerSettings,
    client_id: str,
    protocol: Protocol,
    will: Will | None,
    sent: PacketCounter,
    received: PacketCounter,
) -> CountingClient:
    """Build a client that is ready for `loop_start`.

    Args:
        settings: The broker.
        client_id: Client identifier.
        protocol: MQTT version to speak.
        will: The will, if there is one.
        sent: Counts what is written.
        received: Counts what is read.

    Raises:
        SettingsError: When a certificate, key or password file cannot be loaded.
    """
    client = CountingClient(protocol, client_id, sent, received)
    client.connect_timeout = CONNECT_TIMEOUT_S
    client.max_inflight_messages_set(MAX_INFLIGHT_MESSAGES)
    client.reconnect_delay_set(RECONNECT_MIN_S, RECONNECT_MAX_S)
    client.on_socket_open = _on_socket_open
    if settings.username is not None:
        client.username_pw_set(settings.username, settings.read_password())
    context = settings.tls_context()
    if context is not None:
        client.tls_set_context(context)
    if will is not None:
        client.will_set(will.topic, will.payload, will.qos, will.retain)
    if protocol == "5":
        properties = Properties(PacketTypes.CONNECT)
        properties.MaximumPacketSize = RECEIVE_LIMIT_BYTES
        client.connect_async(
            settings.host, settings.port, settings.keep_alive_s, clean_start=True, properties=properties
        )
    else:
        client.connect_async(settings.host, settings.port, settings.keep_alive_s)
    return client


def _on_socket_open(client: Client, userdata: Any, sock: SocketLike) -> None:  # noqa: ARG001 - paho's signature
    if isinstance(sock, socket.socket):
        # Nagle's algorithm with delayed acknowledgements makes a small QoS 1 round trip 44 ms instead of 0.2 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def is_refusal(reason: ReasonCode, *names: str) -> bool:
    """Tell whether a reason code has one of these MQTT 5 names."""
    return str(reason) in names
