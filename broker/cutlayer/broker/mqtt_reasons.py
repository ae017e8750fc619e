"""What a broker's or a socket's refusal means: an error that no retry can help, or a text to show.

Reason codes are MQTT 5's (section 2.4); paho-mqtt translates the return codes of MQTT 3.1.1 to them.
"""

from __future__ import annotations

import ssl

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.errors import IdentityTaken, NotAuthorized, PacketTooLarge, SettingsError

__all__ = [
    "BEFORE_ACCEPTED",
    "FAILURE",
    "ShortLives",
    "fatal_connack",
    "fatal_disconnect",
    "fatal_socket_error",
    "socket_text",
]

FAILURE = 0x80
"""Reason codes from here on are errors."""
UNSUPPORTED_PROTOCOL_VERSION = 0x84
CLIENT_IDENTIFIER_NOT_VALID = 0x85
BAD_USER_NAME_OR_PASSWORD = 0x86
NOT_AUTHORIZED = 0x87
BANNED = 0x8A
BAD_AUTHENTICATION_METHOD = 0x8C
SESSION_TAKEN_OVER = 0x8E
PACKET_TOO_LARGE = 0x95

BEFORE_ACCEPTED = "; before it accepted one: is this its MQTT port, and does it want TLS or MQTT 3.1.1?"
"""What to ask a person when a connection ended before CONNACK."""

CREDENTIALS = {BAD_USER_NAME_OR_PASSWORD, NOT_AUTHORIZED, BANNED, BAD_AUTHENTICATION_METHOD}


def fatal_connack(code: int, text: str, settings: BrokerSettings, client_id: str) -> Exception | None:
    """Return the error that a CONNACK's reason code means, or None where a later attempt may succeed."""
    if code in CREDENTIALS:
        who = f"user {settings.username!r}" if settings.username is not None else "a connection without a user name"
        return NotAuthorized(settings.url, f"{who}: {text.lower()}")
    if code == UNSUPPORTED_PROTOCOL_VERSION:
        return SettingsError(
            f"the broker at {settings.url} does not speak MQTT {settings.protocol}", "use protocol auto"
        )
    if code == CLIENT_IDENTIFIER_NOT_VALID:
        return SettingsError(
            f"the broker at {settings.url} does not accept the client identifier {client_id!r}",
            "use a shorter name of letters and digits, or allow it at the broker",
        )
    return None


def fatal_disconnect(code: int, settings: BrokerSettings, identity: str, largest_bytes: int) -> Exception | None:
    """Return the error that a broker's DISCONNECT (MQTT 5) means, or None where the connection may be made again.

    Args:
        code: Reason code.
        settings: The broker.
        identity: Agent topic or worker name, for the message.
        largest_bytes: Largest packet sent, for the message.
    """
    if code == SESSION_TAKEN_OVER:
        return IdentityTaken(identity)
    if code == NOT_AUTHORIZED:
        return NotAuthorized(settings.url, "it ended the connection as not authorized")
    if code == PACKET_TOO_LARGE:
        return PacketTooLarge(min(settings.max_packet_bytes, largest_bytes - 1), largest_bytes)
    return None


def fatal_socket_error(error: BaseException | None, settings: BrokerSettings) -> Exception | None:
    """Return the error behind a failed TLS handshake, or None where a later attempt may succeed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return SettingsError(
            f"the certificate of the broker at {settings.url} is not trusted ({error.verify_message})",
            "give --ca-file with the certificate of the CA that signed it, and the host name that is in it",
        )
    if not isinstance(error, ssl.SSLError):
        return None
    reason = error.reason or ""
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return SettingsError(
            f"the broker at {settings.url} does not answer in TLS", "write mqtt://, or use the broker's TLS port"
        )
    if "ALERT" in reason and any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE")):
        asked = "no client certificate was given" if settings.client_cert is None else f"{settings.client_cert}"
        return NotAuthorized(settings.url, f"{reason.lower().replace('_', ' ')} ({asked})")
    return None


def socket_text(error: BaseException | None) -> str:
    """Return what a socket error says, for a person."""
    if error is None:
        return "the broker closed the connection"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class ShortLives:
    """Notices connections that the broker accepts and ends at once, again and again.

    In MQTT 3.1.1 this is all that a client sees of a second one with its identifier, and of a packet over the
    broker's limit (which paho-mqtt then sends again).

    Args:
        client_id: Client identifier, for the text.
    """

    SHORT_S = 5.0
    MANY = 3

    def __init__(self, client_id: str) -> None:
        self._client_id = client_id
        self._num = 0
        self._began_s: float | None = None

    def begin(self, now_s: float) -> None:
        """Note that a connection is complete."""
        self._began_s = now_s

    def hint_at_end(self, now_s: float, largest_bytes: int) -> str:
        """Note that a connection has ended; return what to add to the reason.

        Args:
            now_s: When it ended, on the clock of `begin`.
            largest_bytes: Largest packet sent so far.
        """
        is_short = self._began_s is None or now_s - self._began_s < self.SHORT_S
        self._num = self._num + 1 if is_short else 0
        self._began_s = None
        if self._num < self.MANY:
            return ""
        return (
            f"; {self._num} short connections in a row: another process may use the client identifier "
            f"{self._client_id!r}, or the broker's packet limit may be below {largest_bytes} B"
        )
