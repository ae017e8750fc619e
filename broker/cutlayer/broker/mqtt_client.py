"""A paho-mqtt client, set up as measurements say it should be, that counts the bytes of its socket."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.mqtt_packets import PacketCounter, Protocol
from cutlayer.broker.transport import Will

__all__ = ["CountingClient", "make_client"]

CONNECT_TIMEOUT_S = 5.0
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
        self.ending = False
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

    def begin_attempt(self) -> None:
        """Refuse to connect again when this client is to end.

        Raises:
            ConnectionAbortedError: After `leave` or `cut`. paho-mqtt takes this like any failed attempt.
        """
        if self.ending:
            self.disconnect()  # there is no connection: this only makes the network thread end
            raise ConnectionAbortedError("this client is closing")

    def begin_connection(self, sock: object) -> None:
        """Count a new connection's packets from their start; refuse it when this client is to end.

        Raises:
            ConnectionAbortedError: When `leave` or `cut` came while the connection was being made.
        """
        if self.ending:
            _shut_down(sock)
            raise ConnectionAbortedError("this client is closing")
        self.last_error = None
        self._sent_count.begin()
        self._received_count.begin()

    def leave(self) -> bool:
        """Send what is queued and DISCONNECT, so that no will fires; return whether there is a connection."""
        self.ending = True
        return self.disconnect() == MQTTErrorCode.MQTT_ERR_SUCCESS

    def cut(self) -> None:
        """End the connection as if this process had died: no DISCONNECT, so the broker publishes the will."""
        self.ending = True
        # The network thread may notice the end before `disconnect` below says that it is wanted; then it shall not
        # sleep, but meet `ending` at once (`begin_attempt`).
        self.reconnect_delay_set(0, 0)
        sock = self.socket()
        if sock is not None:
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
        self.on_pre_connect = self.on_connect = self.on_connect_fail = self.on_disconnect = None
        self.on_message = self.on_publish = self.on_subscribe = self.on_socket_open = None


class _TidySocket(ssl.SSLSocket):
    """Closes itself when the handshake fails; paho-mqtt leaves that to the garbage collector, which complains."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def _shut_down(sock: object) -> None:
    # SSLSocket.shutdown would drop the TLS state under the network thread's hands; the socket below it will do.
    if isinstance(sock, socket.socket):
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


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
        context.sslsocket_class = _TidySocket
        client.tls_set_context(context)
    if will is not None:
        client.will_set(will.topic, will.payload, will.qos, will.retain)
    if protocol == "5":
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = RECEIVE_LIMIT_BYTES
        client.connect_async(
            settings.host, settings.port, settings.keep_alive_s, clean_start=True, properties=properties
        )
    else:
        client.connect_async(settings.host, settings.port, settings.keep_alive_s)
    return client


def _on_socket_open(client: Client, userdata: Any, sock: object) -> None:  # noqa: ARG001 - paho's signature
    if isinstance(sock, socket.socket):
        # Nagle's algorithm with delayed acknowledgements makes a small QoS 1 round trip 44 ms instead of 0.2 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if isinstance(client, CountingClient):
        client.begin_connection(sock)
