"""The flags that every program has for its broker, each with an environment variable that is weaker than the flag."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, cast

import typer

from cutlayer.broker.broker_settings import BrokerSettings, ProtocolChoice

__all__ = [
    "DEFAULT_BROKER",
    "DEFAULT_KEEP_ALIVE_S",
    "DEFAULT_MAX_PACKET_BYTES",
    "BrokerUrl",
    "CaFile",
    "ClientCert",
    "ClientKey",
    "KeepAlive",
    "MaxPacketBytes",
    "MqttVersion",
    "PasswordFile",
    "Username",
    "broker_settings",
]

DEFAULT_BROKER: Final = "mqtt://127.0.0.1:1883"
DEFAULT_MAX_PACKET_BYTES: Final = 1_000_000
DEFAULT_KEEP_ALIVE_S: Final = 60
PASSWORD_VARIABLE: Final = "CUTLAYER_PASSWORD"  # noqa: S105 - the name of a variable, not its value
_PANEL = "Broker"

BrokerUrl = Annotated[
    str,
    typer.Option(
        "--broker",
        help="Address: mqtt://HOST[:1883], or mqtts://HOST[:8883] for TLS.",
        envvar="CUTLAYER_BROKER",
        rich_help_panel=_PANEL,
    ),
]
Username = Annotated[
    str | None,
    typer.Option(help="User name, if the broker wants one.", envvar="CUTLAYER_USERNAME", rich_help_panel=_PANEL),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        help=f"File whose first line is the password; {PASSWORD_VARIABLE} may hold the password itself.",
        envvar="CUTLAYER_PASSWORD_FILE",
        rich_help_panel=_PANEL,
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        help="Certificates (PEM) that the broker's must be signed by; the system's when left out.",
        envvar="CUTLAYER_CA_FILE",
        rich_help_panel=_PANEL,
    ),
]
ClientCert = Annotated[
    Path | None,
    typer.Option(
        help="This program's certificate (PEM), for brokers that ask for one.",
        envvar="CUTLAYER_CLIENT_CERT",
        rich_help_panel=_PANEL,
    ),
]
ClientKey = Annotated[
    Path | None,
    typer.Option(help="Its private key (PEM).", envvar="CUTLAYER_CLIENT_KEY", rich_help_panel=_PANEL),
]
MaxPacketBytes = Annotated[
    int,
    typer.Option(
        help="Largest MQTT packet to send; larger messages go in chunks. AWS IoT needs 131072.",
        envvar="CUTLAYER_MAX_PACKET_BYTES",
        rich_help_panel=_PANEL,
    ),
]
KeepAlive = Annotated[int, typer.Option(help="Seconds without traffic until a ping.", rich_help_panel=_PANEL)]
MqttVersion = Annotated[
    str, typer.Option("--mqtt", help="MQTT version: auto, 5 or 3.1.1.", metavar="VERSION", rich_help_panel=_PANEL)
]


def broker_settings(
    url: str,
    username: str | None,
    password_file: Path | None,
    ca_file: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    max_packet_bytes: int,
    keep_alive_s: int,
    mqtt_version: str,
) -> BrokerSettings:
    """Build the settings from the flags' values, and the password from its variable where no file is named.

    Raises:
        SettingsError: When one cannot work; the text names it.
    """
    return BrokerSettings(
        url=url,
        username=username,
        password=None if password_file else os.environ.get(PASSWORD_VARIABLE) or None,
        password_file=password_file,
        ca_file=ca_file,
        client_cert=client_cert,
        client_key=client_key,
        max_packet_bytes=max_packet_bytes,
        keep_alive_s=keep_alive_s,
        protocol=cast("ProtocolChoice", mqtt_version),  # BrokerSettings checks it
    )
