"""The network thread's half of `MqttTransport`: paho-mqtt's callbacks, turned into transport events.

The callbacks run on paho-mqtt's network thread and only note what happened; nothing here blocks. No lock of ours is
held while paho-mqtt is called, since it calls back with locks of its own held.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.errors import CutlayerError, NotAuthorized
from cutlayer.broker.mqtt_client import CountingClient, make_client
from cutlayer.broker.mqtt_packets import PacketCounter, Protocol, publish_size
from cutlayer.broker.mqtt_reasons import (
    BEFORE_ACCEPTED,
    FAILURE,
    ShortLives,
    fatal_connack,
    fatal_disconnect,
    fatal_socket_error,
    socket_text,
)
from cutlayer.broker.mqtt_subscriptions import Subscriptions
from cutlayer.broker.mqtt_version import ask_version
from cutlayer.broker.packet_queues import EventQueue, OnItsWay, Outbox
from cutlayer.broker.transport import Connected, Disconnected, Received, Will, WireCount

__all__ = ["MqttConnection"]

LEAVE_TIMEOUT_S = 2.0


class MqttConnection:
    """Keeps a connection to a broker, with its subscriptions, and reports what happens on it.

    Args:
        settings: The broker and the limits.
        client_id: Client identifier.
        identity: What to call this client in `IdentityTaken`.
        events: Where events go.
        outbox: Where packets that have left are noted.
    """

    def __init__(
        self, settings: BrokerSettings, client_id: str, identity: str, events: EventQueue, outbox: Outbox
    ) -> None:
        self.protocol: Protocol = settings.first_protocol
        self.max_packet_bytes = settings.max_packet_bytes
        self.up = False
        """Whether the broker has accepted the connection. `Connected` follows when the subscriptions are in place."""
        self._settings = settings
        self._client_id = client_id
        self._identity = identity
        self._events = events
        self._outbox = outbox
        self._will: Will | None = None
        self._client: CountingClient | None = None
        self._retired: list[CountingClient] = []
        self._sent = PacketCounter()
        self._received = PacketCounter()
        self._largest_bytes = 0

        self._subscriptions = Subscriptions()

        self._welcome: Connected | None = None
        self._welcome_after: int | None = None
        self._early: list[Received] = []
        self._lives = ShortLives(client_id)
        self._switching = threading.Lock()
        self._over = threading.Event()
        self._ended = threading.Event()

    @property
    def wire(self) -> WireCount:
        """Bytes so far; `dropped_packets` holds what found the event queue full."""
        return WireCount(
            sent_bytes=self._sent.num_bytes,
            received_bytes=self._received.num_bytes,
            sent_packets=self._sent.num_publishes,
            received_packets=self._received.num_publishes,
            dropped_packets=self._events.num_refused,
            sent_publish_bytes=self._sent.num_publish_bytes,
            received_publish_bytes=self._received.num_publish_bytes,
        )

    @property
    def over(self) -> bool:
        """Whether the connection was closed or failed for good."""
        return self._over.is_set()

    def start(self, will: Will | None) -> None:
        """Start connecting.

        Raises:
            SettingsError: When a certificate, key or password file cannot be loaded.
        """
        assert self._client is None, "a transport connects once"
        self._will = will
        self._start_client()

    def subscribe(self, topic_filter: str, qos: int, *, is_optional: bool = False) -> None:
        """Ask for a topic filter, now and after each reconnect."""
        self._subscriptions.add(topic_filter, qos, is_optional=is_optional)
        if self.up and self._client is not None:
            self._subscriptions.ask(self._client, self.protocol, {topic_filter: qos})

    def unsubscribe(self, topic_filter: str) -> None:
        """Give a topic filter up."""
        self._subscriptions.remove(topic_filter)
        if self.up and self._client is not None:
            self._client.unsubscribe(topic_filter)

    def publish(self, packet: OnItsWay, payload: bytes, *, retain: bool) -> bool:
        """Hand a packet, whose room in the outbox is reserved, to the network; return whether it was taken."""
        client = self._client
        if client is None:
            return False
        self._largest_bytes = max(self._largest_bytes, packet.wire_bytes)
        sent = client.publish(packet.topic, payload, packet.qos, retain)
        # Without a connection paho-mqtt answers NO_CONN, and keeps the packet nevertheless if it is QoS 1.
        kept = sent.rc == MQTTErrorCode.MQTT_ERR_NO_CONN and packet.qos > 0
        if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS and not kept:
            return False
        refusal = self._outbox.sent(sent.mid, packet)
        if refusal:
            self._deny(client, f"publishing to {packet.topic!r}", refusal)
        return True

    def close(self, *, graceful: bool) -> None:
        """End the connection and join the network thread. Not graceful: no DISCONNECT, so the will fires."""
        with self._switching:
            self._over.set()
            client = self._client
        if client is None:
            return
        if graceful and client.leave():
            self._ended.wait(LEAVE_TIMEOUT_S)
        client.cut()
        for each in (*self._retired, client):
            each.dispose()
        self._retired.clear()
        self._client = None
        self.up = False

    def _start_client(self) -> None:
        client = make_client(self._settings, self._client_id, self.protocol, self._will, self._sent, self._received)
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        self._client = client
        client.loop_start()

    def _fail(self, client: CountingClient, error: Exception) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self.up = False
        self._events.put(Disconnected(str(error).splitlines()[0], fatal=error))
        client.cut()  # without DISCONNECT: peers learn by the will that this client is gone

    def _deny(self, client: CountingClient, what: str, reason: str) -> None:
        self._fail(client, NotAuthorized(self._settings.url, f"{what}: {reason.lower()}"))

    # Callbacks: paho-mqtt's signatures, on its network thread.

    def _on_pre_connect(self, client: Client, userdata: Any) -> None:
        del userdata
        assert isinstance(client, CountingClient)
        client.begin_attempt()
        if self._settings.protocol != "auto" or self.protocol != "5":
            return
        try:
            if ask_version(self._settings, self._sent, self._received) != "3.1.1":
                return
            with self._switching:
                if not self.over:
                    self.protocol = "3.1.1"  # and kept from here on
                    self._outbox.forget(qos_1_too=True)  # after a change of broker: what the old client still held
                    self._retired.append(client)
                    self._start_client()
        except CutlayerError as error:  # a password or key file vanished meanwhile
            self._fail(client, error)
        client.ending = True
        client.begin_attempt()

    def _on_connect(
        self, client: Client, userdata: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        del userdata
        if client is not self._client or self.over:
            return
        if reason.value >= FAILURE:
            self._client.last_error = ConnectionRefusedError(f"the broker refuses the connection: {reason}".lower())
            if fatal := fatal_connack(reason.value, str(reason), self._settings, self._client_id):
                self._fail(self._client, fatal)
            return
        # MQTT 5, section 3.2.2.3.6: a larger packet would end the connection.
        announced = getattr(properties, "MaximumPacketSize", self._settings.max_packet_bytes)
        self.max_packet_bytes = min(self._settings.max_packet_bytes, announced)
        self._welcome = Connected(self.max_packet_bytes, flags.session_present)
        self._ended.clear()
        self.up = True
        self._welcome_after = self._subscriptions.ask_all(self._client, self.protocol)
        if self._welcome_after is None:
            self._announce()

    def _announce(self) -> None:
        assert self._welcome is not None
        self._events.put(self._welcome)
        self._welcome = self._welcome_after = None
        self._lives.begin(time.monotonic())
        for event in self._early:
            self._events.put(event)
        self._early.clear()

    def _on_connect_fail(self, client: Client, userdata: Any) -> None:
        del userdata
        if client is not self._client or self.over:
            return
        error = sys.exception()  # paho-mqtt calls this while it handles the exception, and tells no more
        if fatal := fatal_socket_error(error, self._settings):
            self._fail(self._client, fatal)
        else:
            self._events.put(Disconnected(f"no connection to {self._settings.url}: {socket_text(error)}"))

    def _on_disconnect(
        self, client: Client, userdata: Any, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        del userdata, properties
        if client is not self._client:
            return
        accepted = self.up
        self.up = False
        self._subscriptions.connection_ended()
        self._welcome = self._welcome_after = None
        self._early.clear()
        self._ended.set()
        if self.over:
            return
        if flags.is_disconnect_packet_from_server:
            fatal = fatal_disconnect(reason.value, self._settings, self._identity, self._largest_bytes)
            text = f"the broker ended the connection: {str(reason).lower()}"
        else:
            fatal = None if accepted else fatal_socket_error(self._client.last_error, self._settings)
            text = socket_text(self._client.last_error)
        if fatal is not None:
            self._fail(self._client, fatal)
        else:
            if accepted:
                text += self._lives.hint_at_end(time.monotonic(), self._largest_bytes)
            elif not isinstance(self._client.last_error, ConnectionRefusedError):
                text += BEFORE_ACCEPTED
            self._events.put(Disconnected(text))

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        del userdata
        if client is not self._client or self.over:
            return
        try:
            topic = message.topic
        except UnicodeDecodeError:  # MQTT 5, section 1.5.4: no broker passes such a topic name on
            return
        wire_bytes = publish_size(topic, len(message.payload), qos=message.qos, protocol=self.protocol)
        event = Received(topic, bytes(message.payload), message.retain, wire_bytes)
        if self._welcome is None:
            self._events.put(event)
        else:
            self._early.append(event)

    def _on_publish(self, client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties) -> None:
        del userdata, properties
        if client is not self._client:
            return
        refusal = str(reason) if reason.value >= FAILURE else ""
        packet = self._outbox.done(mid, refusal)
        if packet is not None and refusal:
            self._deny(self._client, f"publishing to {packet.topic!r}", refusal)

    def _on_subscribe(
        self, client: Client, userdata: Any, mid: int, reasons: list[ReasonCode], properties: Properties
    ) -> None:
        del userdata, properties
        if client is not self._client:
            return
        denied = self._subscriptions.denied(mid, reasons)
        if denied is not None:
            self._deny(self._client, *denied)
        elif mid == self._welcome_after:
            self._announce()
