"""The `cutlayer top` command."""

from __future__ import annotations

import json
import secrets
from typing import Annotated

import typer

from cutlayer.broker.broker_flags import (
    DEFAULT_BROKER,
    DEFAULT_KEEP_ALIVE_S,
    DEFAULT_MAX_PACKET_BYTES,
    BrokerUrl,
    CaFile,
    ClientCert,
    ClientKey,
    KeepAlive,
    MaxPacketBytes,
    MqttVersion,
    PasswordFile,
    Username,
    broker_settings,
)
from cutlayer.broker.command_line import GracefulStop, configure_logging
from cutlayer.broker.errors import SettingsError

__all__ = ["top"]

Once = Annotated[bool, typer.Option("--once", help="Print one screen, after each worker's second report, and end.")]
AsJson = Annotated[bool, typer.Option("--json", help="With --once: one JSON object with every panel's values.")]
Timeout = Annotated[
    float,
    typer.Option(
        min=0.5, max=3600.0, help="Seconds to wait: for the connection and, with --once, for the run and its reports."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Everything, and tracebacks.")]


def top(
    once: Once = False,
    as_json: AsJson = False,
    timeout: Timeout = 20.0,
    broker: BrokerUrl = DEFAULT_BROKER,
    username: Username = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
    max_packet_bytes: MaxPacketBytes = DEFAULT_MAX_PACKET_BYTES,
    keep_alive: KeepAlive = DEFAULT_KEEP_ALIVE_S,
    mqtt_version: MqttVersion = "auto",
    debug: Debug = False,
) -> None:
    """Watch a run in this terminal, from any host that reaches its broker.

    Shows what Grafana's overview and the worker's own page show: is the run well, which site is slow, which
    direction costs most, what does the codec save. Reads `cutlayer/run` and `cutlayer/workers/+/state` and `/report`
    and publishes nothing. Waits where no run is there yet; Ctrl-C leaves the last screen behind. docs/top.md explains
    the screen and the JSON.

    **Examples**

    `cutlayer top`

    `cutlayer top --broker mqtts://hub --ca-file ca.pem --username watcher --password-file FILE`

    `cutlayer top --broker mqtt://hub --once --json > now.json`
    """
    configure_logging("text", quiet=True, debug=debug)
    settings = broker_settings(
        broker,
        username,
        password_file,
        ca_file,
        client_cert,
        client_key,
        max_packet_bytes,
        keep_alive,
        mqtt_version,
    )
    if as_json and not once:
        raise SettingsError("--json is for one screen", "give --once, too")
    from rich.console import Console

    from cutlayer.broker.mqtt import MqttTransport
    from cutlayer.simulation.top import look_once, watch
    from cutlayer.simulation.top_state import as_document
    from cutlayer.simulation.top_view import TopScreen

    console = Console()
    if not once and not console.is_terminal:
        raise SettingsError("the output is no terminal", "give --once, or --once --json")
    # Several may watch one run, also from hosts that number their processes alike.
    transport = MqttTransport(settings, client_id=f"cutlayer-top-{secrets.token_hex(4)}")
    if once:
        state = look_once(transport, settings.url, timeout_s=timeout)
        if as_json:
            typer.echo(json.dumps(as_document(state), indent=2, allow_nan=False))
        else:
            console.print(TopScreen(state))
        return
    with GracefulStop() as stop:
        watch(transport, settings.url, console, stop.should_stop, timeout_s=timeout)
    if stop.should_stop():
        raise KeyboardInterrupt
