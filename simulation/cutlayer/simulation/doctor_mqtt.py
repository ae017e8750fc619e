"""The doctor's looks at MQTT itself: versions and credentials, what the broker offers, how large a packet may be."""

from __future__ import annotations

from typing import Final

from pydantic import JsonValue

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.model_chunks import MODEL_CHUNK_BYTES
from cutlayer.broker.mqtt_client import MAX_INFLIGHT_MESSAGES
from cutlayer.broker.mqtt_packets import PacketCounter, Protocol, largest_payload, publish_size
from cutlayer.broker.mqtt_reasons import BEFORE_ACCEPTED, CLIENT_IDENTIFIER_NOT_VALID, CREDENTIALS
from cutlayer.broker.mqtt_version import ask_version
from cutlayer.broker.topics import model_chunk
from cutlayer.simulation.doctor_client import Answer, DoctorClient
from cutlayer.simulation.doctor_network import speaks_tls
from cutlayer.simulation.doctor_report import EXIT_SETTINGS, Finding, found, problem, skipped, warning

__all__ = ["NEEDED_PACKET_BYTES", "check_credentials", "check_features", "check_packets"]

NEEDED_PACKET_BYTES: Final = publish_size(model_chunk("0" * 64, 65_535), MODEL_CHUNK_BYTES, qos=1, protocol="5")
"""Below this no worker can publish the retained pieces of a model."""
TRIED_BYTES: Final = (1_000_000, 524_288, 262_144, 131_072, NEEDED_PACKET_BYTES, 16_384, 512)
"""Packets that are tried one after the other until one passes: 2 MB in all, on so many connections."""
MOST_TRIED_BYTES: Final = 2_000_000
SLOW_BYTES_PER_S: Final = 50_000
"""A large packet has the time to leave over a link as slow as this."""


def check_credentials(settings: BrokerSettings, timeout_s: float) -> tuple[Finding, Protocol | None]:
    """Connect with each MQTT version that the settings allow.

    Returns:
        The finding, and the version to go on with: the one that an agent would speak, or None.

    Raises:
        SettingsError: When a certificate, key or password file cannot be loaded.
    """
    answers: dict[Protocol, Answer] = {}
    for protocol in _versions(settings):
        with DoctorClient(settings, protocol, timeout_s) as client:
            answers[protocol] = client.open()
    accepted = [protocol for protocol, answer in answers.items() if answer.is_accepted]
    who = f"user {settings.username!r}" if settings.username is not None else "without a user name"
    told = ", ".join(f"MQTT {protocol}: {answer.text}" for protocol, answer in answers.items())
    values: dict[str, JsonValue] = {
        "codes": {protocol: answer.code for protocol, answer in answers.items()},
        "accepted": [*accepted],
    }
    if accepted:
        return found("credentials", f"{who}, {told}", values), accepted[0]
    codes = {answer.code for answer in answers.values()}
    fact = f"{who}, refused: {told}"
    if codes & CREDENTIALS:
        fix = "check --username and the first line of --password-file against the broker's list of users"
        if settings.username is None:
            fix = "give --username and --password-file; a broker that asks for certificates wants --client-cert"
        return problem("credentials", fact, fix, values), None
    if CLIENT_IDENTIFIER_NOT_VALID in codes:
        fix = "let the broker take client identifiers that begin with cutlayer-"
        return problem("credentials", fact, fix, values), None
    if codes != {None}:
        fix = "use --mqtt auto" if settings.protocol != "auto" else "look into the broker's log for its reason"
        return problem("credentials", fact, fix, values), None
    if not settings.tls and speaks_tls(settings, timeout_s):
        fix = "write mqtts:// instead of mqtt://, with --ca-file if the certificate is by a CA of your own"
        return problem("credentials", "the port speaks TLS", fix, values, exit_code=EXIT_SETTINGS), None
    fact = f"{who}, no CONNACK: {told}"
    fix = f"look into the broker's log for its reason{BEFORE_ACCEPTED.replace('before it accepted one', 'and ask')}"
    return problem("credentials", fact, fix, values), None


def check_features(client: DoctorClient) -> Finding | None:
    """Return what Cutlayer needs and the broker says it lacks (MQTT 5, section 3.2.2.3); None where all is there."""
    said = client.properties
    lacking = []
    if said.get("RetainAvailable", 1) == 0:
        lacking.append("retained messages")
    if said.get("MaximumQoS", 1) == 0:
        lacking.append("QoS 1")
    if said.get("WildcardSubscriptionAvailable", 1) == 0:
        lacking.append("wildcard subscriptions")
    if said.get("ReceiveMaximum", MAX_INFLIGHT_MESSAGES) < MAX_INFLIGHT_MESSAGES:
        lacking.append(f"{MAX_INFLIGHT_MESSAGES} unacknowledged packets a client (it says {said['ReceiveMaximum']})")
    if not lacking:
        return None
    fix = "turn it on at the broker (Mosquitto: retain_available, max_qos, max_inflight_messages), or use another"
    return problem("features", f"the broker does not offer {', '.join(lacking)}", fix, {"lacking": [*lacking]})


def check_packets(client: DoctorClient, settings: BrokerSettings, quiet_topic: str | None) -> Finding:
    """Learn the largest packet: announced in the CONNACK (MQTT 5), else tried.

    Args:
        client: An open connection; it may be closed afterwards.
        settings: The broker and our own limit.
        quiet_topic: Where nobody listens; None where there is no such topic.
    """
    announced = client.properties.get("MaximumPacketSize")
    if announced is not None:
        return _judge_announced(int(announced), settings.max_packet_bytes)
    if quiet_topic is None:
        return skipped("packets", "the broker announces no limit; give --topic to have sizes tried")
    sizes = sorted({min(settings.max_packet_bytes, MOST_TRIED_BYTES), *TRIED_BYTES}, reverse=True)
    refused_bytes = 0
    for size in (size for size in sizes if size <= settings.max_packet_bytes):
        if not client.ensure_open():
            return skipped("packets", f"no connection to try packets on: {client.end}")
        payload = bytes(_payload_bytes(quiet_topic, size, client.protocol))
        answer = client.publish(quiet_topic, payload, timeout_s=client.timeout_s + size / SLOW_BYTES_PER_S)
        if answer.code is not None:
            return _judge_tried(size, refused_bytes, settings.max_packet_bytes)
        if client.is_open:
            fix = "try again; if it stays so, look into the broker's log and at the link's speed"
            return warning("packets", f"a packet of {size:,} B is not acknowledged: {answer.text}", fix)
        refused_bytes = size
    fix = "raise the broker's packet limit (Mosquitto: max_packet_size 8388608)"
    return problem(
        "packets", f"packets of {refused_bytes:,} B end the connection: {client.end}", fix, {"limit_bytes": 0}
    )


def _judge_announced(limit_bytes: int, setting_bytes: int) -> Finding:
    if limit_bytes < NEEDED_PACKET_BYTES:
        return _too_small(f"the broker announces a limit of {limit_bytes:,} B", limit_bytes)
    fact = f"the broker takes up to {limit_bytes:,} B (announced)"
    if limit_bytes < setting_bytes:
        fact += f": larger messages go in chunks of that instead of {setting_bytes:,} B (--max-packet-bytes)"
    else:
        fact += f"; --max-packet-bytes is {setting_bytes:,}"
    return found("packets", fact, {"limit_bytes": limit_bytes, "is_announced": True})


def _judge_tried(passes_bytes: int, refused_bytes: int, setting_bytes: int) -> Finding:
    values: dict[str, JsonValue] = {"limit_bytes": passes_bytes, "is_announced": False}
    if not refused_bytes:
        fact = f"a packet of {passes_bytes:,} B passes (tried; --max-packet-bytes is {setting_bytes:,})"
        return found("packets", fact, values)
    fact = f"a packet of {passes_bytes:,} B passes, one of {refused_bytes:,} B ends the connection"
    if passes_bytes < NEEDED_PACKET_BYTES:
        return _too_small(fact, passes_bytes)
    fix = f"give every agent and worker here --max-packet-bytes {passes_bytes}, or raise the broker's limit"
    return problem("packets", fact, fix, values, exit_code=EXIT_SETTINGS)


def _too_small(fact: str, limit_bytes: int) -> Finding:
    return problem(
        "packets",
        f"{fact}; a worker needs {NEEDED_PACKET_BYTES:,} B for the pieces of a model",
        "raise the broker's packet limit (Mosquitto: max_packet_size 8388608)",
        {"limit_bytes": limit_bytes, "needed_bytes": NEEDED_PACKET_BYTES},
    )


def _payload_bytes(topic: str, packet_bytes: int, protocol: Protocol) -> int:
    payload = largest_payload(topic, packet_bytes)
    while publish_size(topic, payload + 1, qos=1, protocol=protocol) <= packet_bytes:
        payload += 1  # `largest_payload` allows for either version
    return payload


def _versions(settings: BrokerSettings) -> tuple[Protocol, ...]:
    if settings.protocol != "auto":
        return (settings.first_protocol,)
    # Not both at once: amqtt reads an MQTT 5 CONNECT as one of 3.1.1 and waits for bytes that never come.
    return ("3.1.1",) if ask_version(settings, PacketCounter(), PacketCounter()) == "3.1.1" else ("5", "3.1.1")
