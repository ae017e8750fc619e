"""The `cutlayer doctor` command."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

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
from cutlayer.broker.command_line import configure_logging

if TYPE_CHECKING:
    from cutlayer.simulation.doctor_report import Finding

__all__ = ["doctor"]

Topic = Annotated[
    str | None,
    typer.Option(
        help="The agent's topic, such as clinic/07; without one its rights and the link are not looked at.",
        envvar="CUTLAYER_TOPIC",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(help="The agent's data, as `edge-agent start` takes them; left out, they are not looked at."),
]
ShardText = Annotated[str, typer.Option("--shard", help="Which part of the data is this site's: INDEX/COUNT.")]
DataOption = Annotated[list[str] | None, typer.Option(help="Option of the data as KEY=VALUE; may be repeated.")]
Timeout = Annotated[float, typer.Option(min=0.5, max=120.0, help="Seconds that each answer is waited for.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object at the end, with all measured values.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Warnings and problems only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Everything, and tracebacks.")]


def doctor(
    topic: Topic = None,
    data: Data = None,
    shard: ShardText = "0/1",
    data_option: DataOption = None,
    timeout: Timeout = 5.0,
    as_json: AsJson = False,
    broker: BrokerUrl = DEFAULT_BROKER,
    username: Username = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
    max_packet_bytes: MaxPacketBytes = DEFAULT_MAX_PACKET_BYTES,
    keep_alive: KeepAlive = DEFAULT_KEEP_ALIVE_S,
    mqtt_version: MqttVersion = "auto",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Look at all that an agent here needs, before one is started: network, TLS, rights, speed, the run.

    Takes the broker options that `edge-agent start` will take, and says what each line means for it: `ok`, `warning`
    (an agent can live with it, or it could not be proven), `problem` (with what to do), or `skipped`. It takes some
    seconds, sends a few megabytes, leaves nothing behind on the broker and disturbs no agent and no run.

    docs/doctor.md explains each line. Exit codes are those of the agent that would meet the first problem.

    **Examples**

    `cutlayer doctor --broker mqtt://hub --topic clinic/07`

    `cutlayer doctor --broker mqtts://hub --ca-file ca.pem --username clinic-07 --password-file FILE --topic clinic/07`

    `cutlayer doctor --topic clinic/07 --data ./scans --data-option image=scan_path`

    `cutlayer doctor --topic clinic/07 --json > doctor.json`
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
    from rich.console import Console

    from cutlayer.edge_agent.cli import parse_options
    from cutlayer.edge_agent.partition import Shard
    from cutlayer.simulation.doctor import DoctorSettings, examine
    from cutlayer.simulation.doctor_data import SiteData
    from cutlayer.simulation.doctor_report import Verdict, exit_code, print_finding, print_summary
    from cutlayer.simulation.doctor_report import as_json as to_json

    out = Console()
    site = None if data is None else SiteData(data, Shard.parse(shard), parse_options(data_option or []))
    # One console for both where it can be: lines then go above what is being done.
    progress = out if out.is_terminal and not as_json else Console(stderr=True)
    findings: list[Finding] = []
    previous_fix = ""
    with contextlib.ExitStack() as stack:
        status = None
        if progress.is_terminal and not quiet:
            status = stack.enter_context(progress.status("looking"))

        def announce(what: str) -> None:
            if status is not None:
                status.update(f"{what} ...")

        for finding in examine(DoctorSettings(broker=settings, topic=topic, timeout_s=timeout, data=site), announce):
            findings.append(finding)
            if not as_json and not (quiet and finding.verdict not in (Verdict.WARNING, Verdict.PROBLEM)):
                print_finding(out, finding, previous_fix=previous_fix)
                previous_fix = finding.fix or previous_fix
    if as_json:
        typer.echo(to_json(settings.url, topic, findings))
    elif not quiet:
        print_summary(out, findings)
    raise typer.Exit(exit_code(findings))
