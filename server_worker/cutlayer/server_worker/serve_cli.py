"""`server-worker serve`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
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
from cutlayer.broker.command_line import EXIT_CODES, GracefulStop, configure_logging
from cutlayer.server_worker.cli_flags import (
    ConnectTimeout,
    Debug,
    HttpAllowHost,
    HttpHost,
    HttpPort,
    LogFormat,
    Name,
    Quiet,
    RunFile,
    RunId,
    Set,
    parse_setting,
    worker_name,
)

__all__ = ["add_serve"]

Source = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="The output folder of the worker that trained; runs/NAME of the run when left out. Nothing is written "
        "there.",
        file_okay=False,
    ),
]


def add_serve(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command(epilog=EXIT_CODES)(serve)


def serve(
    run: RunFile,
    source: Source = None,
    run_id: RunId = "",
    name: Name = None,
    settings: Set = None,
    http_port: HttpPort = 9108,
    http_host: HttpHost = "127.0.0.1",
    http_allow_host: HttpAllowHost = None,
    connect_timeout: ConnectTimeout = 20.0,
    broker: BrokerUrl = DEFAULT_BROKER,
    username: Username = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
    max_packet_bytes: MaxPacketBytes = DEFAULT_MAX_PACKET_BYTES,
    keep_alive: KeepAlive = DEFAULT_KEEP_ALIVE_S,
    mqtt_version: MqttVersion = "auto",
    log_format: LogFormat = "text",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Serve a trained run to `edge-agent evaluate` and `edge-agent predict`, until it is stopped (Ctrl-C, SIGTERM).

    It loads the newest checkpoint, trains nothing, keeps nothing of what sites send, and leaves the run's folder as it
    is. `--run` and `--set` are those of the run. Several with names of their own serve one run together: sites spread
    over them, and when one dies the others take what it had.

    **Examples**

    `server-worker serve --run examples/digits.toml`

    `server-worker serve --run examples/digits.toml --from runs/digits --name server-2 --http-port 0`
    """
    configure_logging(log_format, quiet=quiet, debug=debug)
    # Torch's threads sleep while they wait for each other, instead of taking the core from a broker.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from cutlayer.server_worker.program import Program

    program = Program(
        run,
        dict(parse_setting(pair) for pair in settings or []),
        name=name or worker_name(),
        broker=broker_settings(
            broker,
            username,
            password_file,
            ca_file,
            client_cert,
            client_key,
            max_packet_bytes,
            keep_alive,
            mqtt_version,
        ),
        output=source,
        resume=False,
        pool=None,
        http_host=http_host,
        http_port=http_port,
        http_allowed_hosts=http_allow_host or (),
        connect_timeout_s=connect_timeout,
        only_visits=True,
        run_id=run_id,
    )
    with GracefulStop("finishing what is here; Ctrl-C again to stop at once") as stop:
        program.run(stop.should_stop)
    if stop.received is signal.SIGINT:
        raise KeyboardInterrupt
