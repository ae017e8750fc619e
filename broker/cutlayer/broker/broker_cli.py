"""The `cutlayer broker` commands: a broker to try things with, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from cutlayer.broker.broker_options import DEFAULT_MAX_PACKET_BYTES, BrokerKind, BrokerOptions
from cutlayer.broker.broker_settings import is_loopback
from cutlayer.broker.command_line import EXIT_CODES, GracefulStop
from cutlayer.broker.errors import NetworkError
from cutlayer.broker.launcher import BrokerProcess, launch_broker

__all__ = ["app", "warnings"]

LOOK_EVERY_S = 0.2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="An MQTT broker to try things with. For production see broker/mosquitto.conf.",
)

Kind = Annotated[
    str,
    typer.Option(help="mosquitto, amqtt (pure Python, slower), or auto: Mosquitto where installed, else amqtt."),
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="TCP port; 0 takes a free one.")]
MaxPacketBytes = Annotated[int, typer.Option(help="Largest MQTT packet it takes (Mosquitto only).")]
TlsCert = Annotated[Path | None, typer.Option(help="The broker's certificate (PEM): turns TLS on.")]
TlsKey = Annotated[Path | None, typer.Option(help="Its private key (PEM).")]
CaFile = Annotated[
    Path | None, typer.Option(help="Ask each client for a certificate that one of these has signed (Mosquitto only).")
]
Passwords = Annotated[Path | None, typer.Option(help="Who may connect: one name:password a line. Keep it private.")]
AclFile = Annotated[
    Path | None, typer.Option(help="Who may use which topics; see broker/acl.example (Mosquitto only).")
]
LogFile = Annotated[Path | None, typer.Option(help="Keep what the broker prints in this file.")]


@app.callback()
def _group() -> None:
    """An MQTT broker to try things with."""


@app.command(epilog=EXIT_CODES.replace("130 stopped by Ctrl-C", "Ctrl-C ends the broker with 0"))
def start(
    kind: Kind = "auto",
    host: Host = "127.0.0.1",
    port: Port = 1883,
    max_packet_bytes: MaxPacketBytes = DEFAULT_MAX_PACKET_BYTES,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    ca_file: CaFile = None,
    password_file: Passwords = None,
    acl_file: AclFile = None,
    log_file: LogFile = None,
) -> None:
    """Start a broker and keep it until Ctrl-C.

    It keeps nothing on disk: agents and workers send again what a stopped broker forgets.

    **Examples**

    `cutlayer broker start`

    `cutlayer broker start --host 0.0.0.0 --port 8883 --tls-cert hub.pem --tls-key hub.key --password-file users.txt`
    """
    options = BrokerOptions(
        kind=cast("BrokerKind", kind),  # BrokerOptions checks it
        host=host,
        port=port,
        max_packet_bytes=max_packet_bytes,
        certificate=tls_cert,
        key=tls_key,
        client_ca=ca_file,
        password_file=password_file,
        acl_file=acl_file,
        log_file=log_file,
    )
    for warning in warnings(options):
        typer.echo(f"warning: {warning}", err=True)
    with GracefulStop() as stop, launch_broker(options) as broker:
        typer.echo(_welcome(broker, options))
        while broker.is_running() and not stop.should_stop():
            broker.wait(LOOK_EVERY_S)
        if not stop.should_stop():
            raise NetworkError(
                f"{broker.kind} ended by itself: {broker.last_log_line() or f'status {broker.wait()}'}\n"
                "  fix: start it again with --log-file and look there"
            )


def warnings(options: BrokerOptions) -> list[str]:
    """Return what to tell a person before this broker starts."""
    if is_loopback(options.host):
        return []
    found = []
    if options.is_open:
        found.append(
            f"anybody who reaches {options.host} can read and forge every message: add --password-file or --ca-file"
        )
    if options.certificate is None:
        found.append("messages and passwords travel unencrypted: add --tls-cert and --tls-key")
    return found


def _welcome(broker: BrokerProcess, options: BrokerOptions) -> str:
    access = ""
    if options.certificate is not None:
        access += " --ca-file CA.pem"
    if options.password_file is not None:
        access += " --username NAME --password-file FILE"
    if options.client_ca is not None:
        access += " --client-cert CERT.pem --client-key KEY.pem"
    reach = f"--broker {broker.url}{access}"
    return (
        f"{broker.kind} is ready at {broker.url} (Ctrl-C ends it)\n"
        f"  a worker:  server-worker start --run examples/digits.toml {reach}\n"
        f"  an agent:  edge-agent start --topic clinic/07 --data demo:digits {reach}"
    )
