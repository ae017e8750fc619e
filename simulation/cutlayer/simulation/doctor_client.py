"""An MQTT client that tells everything it is told: reason codes, properties, what came and when.

`MqttTransport` keeps a connection up and makes errors of refusals; here each refusal is the thing to learn, and
nothing is tried twice. One thread: paho-mqtt's loop runs only while the doctor waits for something.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.mqtt_client import CountingClient, make_client
from cutlayer.broker.mqtt_packets import PacketCounter, Protocol
from cutlayer.broker.mqtt_reasons import FAILURE, socket_text

__all__ = ["Answer", "DoctorClient", "Heard"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a broker says to a packet.

    Attributes:
        code: MQTT 5's reason code; None where none came.
        text: The code's name, or why there is none.
    """

    code: int | None
    text: str

    @property
    def is_accepted(self) -> bool:
        """Whether it is a yes. In MQTT 3.1.1 a PUBACK always is."""
        return self.code is not None and self.code < FAILURE

    @property
    def is_refused(self) -> bool:
        """Whether it is a no, in words."""
        return self.code is not None and self.code >= FAILURE


@dataclass(frozen=True, slots=True)
class Heard:
    """A message that came.

    Attributes:
        topic: Topic name.
        payload: Its bytes.
        retain: Whether the broker had kept it.
        at_s: When it came, by `time.perf_counter`.
    """

    topic: str
    payload: bytes
    retain: bool
    at_s: float


class DoctorClient:
    """One client, with an identifier of its own so that it takes no agent's MQTT session. Closed on leaving.

    Args:
        settings: The broker.
        protocol: MQTT version.
        timeout_s: Seconds that each answer is waited for.

    Attributes:
        protocol: MQTT version.
        timeout_s: Seconds that each answer is waited for.
        properties: Those of the CONNACK (MQTT 5), by name; empty where it had none.
        heard: Messages that came and were not taken yet, oldest first.
        end: Why the connection is over, while it is.
    """

    def __init__(self, settings: BrokerSettings, protocol: Protocol, timeout_s: float) -> None:
        self.protocol: Protocol = protocol
        self.timeout_s = timeout_s
        self.properties: dict[str, Any] = {}
        self.heard: list[Heard] = []
        self.end = "not connected"
        self._settings = settings
        self._client: CountingClient | None = None
        self._filters: dict[str, None] = {}
        self._connack: Answer | None = None
        self._answers: dict[int, list[Answer]] = {}

    @property
    def is_open(self) -> bool:
        """Whether the broker has accepted the connection and it lasts."""
        return not self.end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> Answer:
        """Connect, anew where a connection was there; what was subscribed is subscribed again.

        Raises:
            SettingsError: When a certificate, key or password file cannot be loaded.
        """
        self.close()
        # A new client each time: paho-mqtt would send again what has just ended the connection.
        client = make_client(
            self._settings,
            f"cutlayer-doctor-{secrets.token_hex(3)}",  # 22 characters: MQTT 3.1.1 promises 23
            self.protocol,
            None,
            PacketCounter(),
            PacketCounter(),
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        self._client, self._connack, self.end = client, None, ""
        self._answers.clear()
        try:
            client.reconnect()
        except OSError as error:
            self.end = socket_text(error)
            return Answer(None, self.end)
        connack = self._await_connack()
        if not connack.is_accepted:
            self.end = self.end or connack.text
        elif self._filters:
            self.subscribe(*self._filters)
        return connack

    def ensure_open(self) -> bool:
        """Connect again if the broker has ended the connection; return whether there is one."""
        return self.is_open or self.open().is_accepted

    def subscribe(self, *filters: str) -> dict[str, Answer]:
        """Subscribe at QoS 1; return the broker's answer to each filter."""
        client = self._client
        assert client is not None, "open first"
        self._filters |= dict.fromkeys(filters)
        if self.protocol == "5":
            _, mid = client.subscribe([(name, SubscribeOptions(qos=1)) for name in filters])
        else:
            _, mid = client.subscribe([(name, 1) for name in filters])
        answers = self._await_answers(mid)
        return dict(zip(filters, [*answers, *[self._silence()] * len(filters)], strict=False))

    def unsubscribe(self, *filters: str) -> None:
        """Give filters up."""
        for name in filters:
            self._filters.pop(name, None)
        if self._client is not None and self.is_open:
            self._client.unsubscribe(list(filters))

    def publish(self, topic: str, payload: bytes = b"", *, timeout_s: float | None = None) -> Answer:
        """Publish at QoS 1, not retained, and wait for the PUBACK."""
        client = self._client
        assert client is not None, "open first"
        mid = client.publish(topic, payload, 1).mid
        answers = self._await_answers(mid, timeout_s)
        return answers[0] if answers else self._silence()

    def publish_all(self, topic: str, packets: Sequence[bytes], timeout_s: float) -> int:
        """Publish packets one behind the other; return how many bytes were acknowledged in the time."""
        client = self._client
        assert client is not None, "open first"
        left = {client.publish(topic, packet, 1).mid: len(packet) for packet in packets}
        self.pump(lambda: self._answers.keys() >= left.keys(), timeout_s)
        return sum(size for mid, size in left.items() if self._answers.pop(mid, None) is not None)

    def pump(self, is_done: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Let messages come and go until a condition holds; return whether it does."""
        end_s = time.perf_counter() + (self.timeout_s if timeout_s is None else timeout_s)
        while not is_done():
            left_s = end_s - time.perf_counter()
            if left_s <= 0 or self.end or self._client is None:
                return is_done()
            self._client.loop(min(left_s, 0.1))
        return True

    def take(self, topic: str) -> list[Heard]:
        """Take the messages of one topic out of `heard`."""
        taken = [message for message in self.heard if message.topic == topic]
        self.heard = [message for message in self.heard if message.topic != topic]
        return taken

    def close(self) -> None:
        """Disconnect, if connected."""
        client, self._client = self._client, None
        if client is not None:
            client.leave()
            client.dispose()
        self.end = self.end or "closed"

    def _await_connack(self) -> Answer:
        self.pump(lambda: self._connack is not None)
        return self._connack or Answer(None, self.end or f"no CONNACK within {self.timeout_s:g} s")

    def _await_answers(self, mid: int | None, timeout_s: float | None = None) -> list[Answer]:
        if mid is None:
            return []
        self.pump(lambda: mid in self._answers, timeout_s)
        return self._answers.pop(mid, [])

    def _silence(self) -> Answer:
        return Answer(None, self.end or f"no answer within {self.timeout_s:g} s")

    # Callbacks: paho-mqtt's signatures, called from `pump`.

    def _on_connect(
        self, client: Client, userdata: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        del client, userdata, flags
        self.properties = {} if properties is None else properties.json()  # type: ignore[no-untyped-call]
        self._connack = Answer(reason.value, str(reason).lower())

    def _on_disconnect(
        self, client: Client, userdata: Any, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        del userdata, properties
        if flags.is_disconnect_packet_from_server:
            self.end = self.end or f"the broker ended the connection: {str(reason).lower()}"
        else:
            assert isinstance(client, CountingClient)
            self.end = self.end or socket_text(client.last_error)

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        del client, userdata
        with contextlib.suppress(UnicodeDecodeError):  # MQTT 5, section 1.5.4: no broker passes such a topic on
            self.heard.append(Heard(message.topic, bytes(message.payload), message.retain, time.perf_counter()))

    def _on_publish(self, client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties) -> None:
        del client, userdata, properties
        self._answers[mid] = [Answer(reason.value, str(reason).lower())]

    def _on_subscribe(
        self, client: Client, userdata: Any, mid: int, reasons: list[ReasonCode], properties: Properties
    ) -> None:
        del client, userdata, properties
        self._answers[mid] = [Answer(reason.value, str(reason).lower()) for reason in reasons]
