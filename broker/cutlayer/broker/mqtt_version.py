"""Which MQTT version a broker speaks, asked on a connection of its own.

Trying MQTT 5 and waiting for a refusal does not do: amqtt reads an MQTT 5 CONNECT as one of 3.1.1, takes the
property lengths for lengths of strings, and waits for bytes that never come as soon as there is a will or a user name.
A CONNECT with nothing in it is refused at once. It costs one short connection.
"""

from __future__ import annotations

import contextlib
import socket

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.mqtt_packets import PacketCounter, Protocol

__all__ = ["ask_version"]

BARE_CONNECT = bytes.fromhex("10 0d 0004 4d515454 05 02 001e 00 0000")
"""MQTT 5 (05), clean start (02), keep alive 30 s, no properties, and an empty client identifier, for which the
broker makes one up."""
DISCONNECT = bytes.fromhex("e000")
CONNACK = 0x20
ACCEPTED = b"\x00"
CONNACK_3_1_1_LENGTH = 2
"""Remaining length; an MQTT 5 CONNACK has a property length too, so at least 3 (section 3.2.1)."""
TIMEOUT_S = 5.0


def ask_version(settings: BrokerSettings, sent: PacketCounter, received: PacketCounter) -> Protocol | None:
    """Return the MQTT version that the broker answers with, or None when it gives no answer.

    Sends neither credentials nor a client identifier; a refusal of those is an answer too.

    Args:
        settings: The broker.
        sent: Counts what is written.
        received: Counts what is read.

    Raises:
        SettingsError: When a certificate or key cannot be loaded.
    """
    context = settings.tls_context()
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(socket.create_connection((settings.host, settings.port), TIMEOUT_S))
            if context is not None:
                stream = stack.enter_context(context.wrap_socket(stream, server_hostname=settings.host))
            stream.sendall(BARE_CONNECT)
            sent.feed(BARE_CONNECT)
            with stream.makefile("rb") as answer:
                head = answer.read(2)
                if len(head) < 2 or head[0] != CONNACK:
                    return None
                body = answer.read(head[1])
            received.feed(head + body)
            if body[1:2] == ACCEPTED:  # a broker that refused closes the connection itself
                stream.sendall(DISCONNECT)
                sent.feed(DISCONNECT)
    except OSError:  # the connection proper comes next and reports it
        return None
    return "3.1.1" if head[1] == CONNACK_3_1_1_LENGTH else "5"
