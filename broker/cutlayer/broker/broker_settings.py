"""How to reach a broker: address, credentials, certificates, limits. Built once, checked at once."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.mqtt_packets import MAX_PACKET_BYTES, Protocol

__all__ = ["BrokerSettings", "ProtocolChoice", "is_loopback"]

ProtocolChoice = Literal["auto", "5", "3.1.1"]

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}
MIN_KEEP_ALIVE_S = 30
"""A PINGREQ waits behind the packets that are already queued; a slow uplink needs this long for them."""
MAX_KEEP_ALIVE_S = 65_535
MIN_MAX_PACKET_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """A broker's address and what its owner asks for. Neither `repr` nor any message shows the password.

    Attributes:
        url: `mqtt://HOST[:1883]`, or `mqtts://HOST[:8883]` for TLS.
        username: User name, if the broker wants one.
        password: Password; prefer `password_file`, since other programs can read a command line.
        password_file: File whose first line is the password.
        ca_file: Certificates (PEM) that the broker's must be signed by; the system's when left out.
        client_cert: This client's certificate (PEM), for brokers that ask for one.
        client_key: Its private key (PEM).
        keep_alive_s: Seconds without traffic after which the client pings; the broker gives a silent client
            up, and publishes its will, after one and a half times that.
        protocol: `auto` tries MQTT 5 and falls back to 3.1.1 where the broker refuses it.
        max_packet_bytes: Largest MQTT packet to send. The default passes every broker that we know but AWS IoT
            (131,072). A broker that announces a smaller one (MQTT 5) is heeded.
        max_queued_messages: Packets that `publish` lets wait for the broker at most.
        max_queued_bytes: Bytes that they, and separately the packets received and not yet taken, hold at most.

    Raises:
        SettingsError: When a value cannot work, naming it and the fix.
    """

    url: str = "mqtt://127.0.0.1:1883"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    keep_alive_s: int = 60
    protocol: ProtocolChoice = "auto"
    max_packet_bytes: int = 1_000_000
    max_queued_messages: int = 1_000
    max_queued_bytes: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        self._check_url()
        self._check_credentials()
        self._check_tls()
        self._check_range("keep_alive_s", MIN_KEEP_ALIVE_S, MAX_KEEP_ALIVE_S, "seconds")
        self._check_range("max_packet_bytes", MIN_MAX_PACKET_BYTES, MAX_PACKET_BYTES, "bytes")
        self._check_range("max_queued_messages", 1, 1_000_000, "packets")
        self._check_range("max_queued_bytes", self.max_packet_bytes, 2**40, "bytes (at least max_packet_bytes)")
        if self.protocol not in get_args(ProtocolChoice):
            raise SettingsError(f"protocol {self.protocol!r} is unknown", "use auto, 5 or 3.1.1")

    @property
    def host(self) -> str:
        """Host name or address."""
        host = urlsplit(self.url).hostname
        assert host is not None  # checked when built
        return host

    @property
    def port(self) -> int:
        """TCP port, the scheme's own where the URL names none."""
        parts = urlsplit(self.url)
        return parts.port or DEFAULT_PORTS[parts.scheme]

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return urlsplit(self.url).scheme == "mqtts"

    @property
    def first_protocol(self) -> Protocol:
        """The MQTT version to try first."""
        return "5" if self.protocol == "auto" else self.protocol

    def read_password(self) -> str | None:
        """Return the password, from its file where it is in one.

        Raises:
            SettingsError: When the file cannot be read or is empty.
        """
        if self.password_file is None:
            return self.password
        _check_file("password_file", self.password_file)
        lines = self.password_file.read_text(encoding="utf-8").splitlines()
        if not lines or not lines[0]:
            raise SettingsError(f"password_file {self.password_file} is empty", "write the password on its first line")
        return lines[0]

    def tls_context(self) -> ssl.SSLContext | None:
        """Build the TLS context, or None for `mqtt://`. The broker's name and certificate are always checked.

        Raises:
            SettingsError: When a certificate or key cannot be loaded.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except ssl.SSLError as error:
            raise SettingsError(
                f"ca_file {self.ca_file} holds no certificates ({error.reason or error})",
                "give the CA's certificate in PEM form (it starts with -----BEGIN CERTIFICATE-----)",
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.client_cert is not None:
            try:
                # An encrypted key would otherwise stop here and ask the terminal for its passphrase.
                context.load_cert_chain(self.client_cert, self.client_key, password=lambda: b"")
            except (ssl.SSLError, OSError) as error:
                raise SettingsError(
                    f"client_cert {self.client_cert} and client_key {self.client_key} do not load ({error})",
                    "give a certificate and the unencrypted private key that belongs to it, both in PEM form",
                ) from error
        return context

    def _check_url(self) -> None:
        example = "write mqtt://HOST:PORT, or mqtts://HOST:PORT for TLS"
        try:
            parts = urlsplit(self.url)
            port = parts.port
            (parts.hostname or "").encode("idna")
        except ValueError as error:
            raise SettingsError(f"broker URL {self.url!r} cannot be read ({error})", example) from error
        if parts.username is not None or parts.password is not None:
            raise SettingsError(
                "the broker URL holds credentials, and URLs are printed",
                "take them out and give --username and --password-file",
            )
        if parts.scheme not in DEFAULT_PORTS:
            raise SettingsError(f"broker URL {self.url!r} is not mqtt:// or mqtts://", example)
        if not parts.hostname:
            raise SettingsError(f"broker URL {self.url!r} names no host", example)
        if port == 0:
            raise SettingsError(f"broker URL {self.url!r} names port 0", example)
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise SettingsError(f"broker URL {self.url!r} goes on after the port", example)

    def _check_credentials(self) -> None:
        if self.password is not None and self.password_file is not None:
            raise SettingsError("both password and password_file are given", "give one of them")
        if self.password_file is not None:
            _check_file("password_file", self.password_file)
        if self.username is None and (self.password is not None or self.password_file is not None):
            # MQTT 3.1.1, section 3.1.2.9: no password without a user name.
            raise SettingsError("a password is given without a username", "give --username as well")

    def _check_tls(self) -> None:
        for name in ("ca_file", "client_cert", "client_key"):
            path = getattr(self, name)
            if path is None:
                continue
            if not self.tls:
                raise SettingsError(
                    f"{name} is given, but {self.url} is not encrypted",
                    f"write mqtts:// instead of mqtt://, or leave {name} out",
                )
            _check_file(name, path)
        if (self.client_cert is None) != (self.client_key is None):
            given, missing = ("client_cert", "client_key") if self.client_key is None else ("client_key", "client_cert")
            raise SettingsError(f"{given} is given without {missing}", f"give {missing} too, or neither")

    def _check_range(self, name: str, low: int, high: int, unit: str) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise SettingsError(f"{name} is {value}", f"use {low} to {high} {unit}")


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a host name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name; empty, as an address to listen on, is every address
        return False


def _check_file(name: str, path: Path) -> None:
    try:
        with path.open("rb"):
            return
    except OSError as error:
        raise SettingsError(
            f"{name} {path} cannot be read ({error.strerror})", f"check the path given as {name}"
        ) from error
