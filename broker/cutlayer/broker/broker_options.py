"""How to start a broker of our own: which one, where, and who may use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.mqtt_packets import MAX_PACKET_BYTES

__all__ = ["BrokerKind", "BrokerOptions", "read_passwords"]

BrokerKind = Literal["auto", "amqtt", "mosquitto"]

DEFAULT_MAX_PACKET_BYTES = 8 * 1024 * 1024
MIN_MAX_PACKET_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerOptions:
    """A broker to start.

    Attributes:
        kind: `mosquitto`, `amqtt` (pure Python, MQTT 3.1.1, for first runs), or `auto`: Mosquitto where it is
            installed, else amqtt.
        host: Address to listen on.
        port: TCP port; 0 takes a free one.
        max_packet_bytes: Largest MQTT packet that it takes (Mosquitto; amqtt has no limit).
        certificate: The broker's certificate (PEM), which turns TLS on.
        key: Its private key (PEM).
        client_ca: Certificates (PEM) of which one must have signed each client's certificate (Mosquitto).
        password_file: Users that may connect, one `name:password` a line. Everybody may when left out.
        acl_file: Who may use which topics, as Mosquitto's manual describes it (Mosquitto).
        figures_s: Seconds between two times that it tells of itself under `$SYS` (Mosquitto; amqtt does not).
        log_file: File for what the broker prints; a temporary one when left out.

    Raises:
        SettingsError: When a value cannot work, naming it and the fix.
    """

    kind: BrokerKind = "auto"
    host: str = "127.0.0.1"
    port: int = 0
    max_packet_bytes: int = DEFAULT_MAX_PACKET_BYTES
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    password_file: Path | None = None
    acl_file: Path | None = None
    figures_s: int = 5
    log_file: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(BrokerKind):
            raise SettingsError(f"broker kind {self.kind!r} is unknown", "use auto, mosquitto or amqtt")
        if not 0 <= self.port <= 65_535:
            raise SettingsError(f"port is {self.port}", "use 1 to 65535, or 0 for a free one")
        if not MIN_MAX_PACKET_BYTES <= self.max_packet_bytes <= MAX_PACKET_BYTES:
            raise SettingsError(
                f"max_packet_bytes is {self.max_packet_bytes}",
                f"use {MIN_MAX_PACKET_BYTES} to {MAX_PACKET_BYTES} bytes",
            )
        if self.figures_s < 1:
            raise SettingsError(f"figures_s is {self.figures_s}", "use whole seconds from 1 up")
        if (self.certificate is None) != (self.key is None):
            raise SettingsError("TLS needs both a certificate and its key", "give --tls-cert and --tls-key")
        if self.client_ca is not None and self.certificate is None:
            raise SettingsError(
                "client certificates can only be asked for with TLS", "give --tls-cert and --tls-key too"
            )
        for name in ("certificate", "key", "client_ca", "password_file", "acl_file"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_file():
                raise SettingsError(f"{name} {path} is not a file", f"check the path given as {name}")
        if self.password_file is not None:
            read_passwords(self.password_file)

    @property
    def is_open(self) -> bool:
        """Whether anybody who reaches the port may use the broker."""
        return self.password_file is None and self.client_ca is None


def read_passwords(path: Path) -> dict[str, str]:
    """Read a file of `name:password` lines; blank lines and lines that start with `#` are skipped.

    Raises:
        SettingsError: When it cannot be read, a line has no name or no password, or there is no line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"password_file {path} cannot be read ({error})", "check the path and its rights"
        ) from error
    passwords = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, password = line.partition(":")
        if not name or not password:
            # The line itself may hold a password, so it is not shown.
            raise SettingsError(
                f"password_file {path}, line {number}, is not a name and a password", "write name:password"
            )
        passwords[name] = password
    if not passwords:
        raise SettingsError(f"password_file {path} names nobody", "write one name:password a line")
    return passwords
