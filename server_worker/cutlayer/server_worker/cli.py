"""The `server-worker` command."""

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
from cutlayer.broker.command_line import EXIT_CODES, GracefulStop, VersionOption, configure_logging, run_app
from cutlayer.broker.errors import SettingsError
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
    Set,
    parse_setting,
    worker_name,
)
from cutlayer.server_worker.disclosure import Disclosure
from cutlayer.server_worker.export_cli import add_export
from cutlayer.server_worker.serve_cli import add_serve

__all__ = ["app", "main", "parse_setting"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="The server's part of a run: holds the transformer, its optimizer and its checkpoints.",
    epilog=EXIT_CODES,
)

Output = Annotated[
    Path | None, typer.Option(help="Folder for run.json and checkpoints; runs/NAME of the run when left out.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the output folder.")]
PoolAt = Annotated[
    str | None,
    typer.Option(
        "--pool",
        help="Train one encoder together with other workers: address of their `torchft_lighthouse`, "
        "such as http://10.0.0.5:29510.",
        envvar="CUTLAYER_POOL",
        metavar="URL",
    ),
]
Store = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps activations until the run ends, so that agents send them once. Workers of a pool on "
        "one machine should name the same. By default one in the output folder.",
        envvar="CUTLAYER_STORE",
        file_okay=False,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="File of weights that the encoder begins with, as timm reads them (safetensors, a PyTorch state dict, or "
        "a JAX .npz); wins over [model] weights and pretrained.",
        metavar="FILE",
        dir_okay=False,
    ),
]
MinAgents = Annotated[int | None, typer.Option(help="Training starts when so many agents are there.", min=1)]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, data order and splits.", min=0)]
Epochs = Annotated[int | None, typer.Option(help="Passes of each agent over its own samples.", min=1)]


@app.callback()
def _group(version: VersionOption = False) -> None:
    """The server's part of a run."""


@app.command(epilog=EXIT_CODES)
def start(
    run: RunFile,
    name: Name = None,
    output: Output = None,
    resume: Resume = False,
    pool: PoolAt = None,
    store: Store = None,
    weights: Weights = None,
    min_agents: MinAgents = None,
    seed: Seed = None,
    epochs: Epochs = None,
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
    """Announce a run, train with whichever agents come, and end when they have done their epochs.

    Ctrl-C (or SIGTERM, which exits with 0) finishes what agents have outstanding here and saves a checkpoint;
    `--resume` goes on from it with the agents still connected. With `--pool` several workers train one encoder: they
    join, leave and die as they like, and agents spread over them. Before the run it says what is tuned, what is sent
    and what a server can infer from that; at the end a summary says what was reached and what it cost, and run.json in
    the output folder says all of it to programs.

    **Examples**

    `server-worker start --run examples/digits.toml`

    `server-worker start --run examples/digits.toml --broker mqtts://hub --set window.samples=256 --resume`

    `server-worker start --run wards.toml --weights vit_base.safetensors --set tuning.mode=lora`

    `torchft_lighthouse --min_replicas 1 --heartbeat_timeout_ms 2000`, and then on each machine
    `server-worker start --run examples/digits.toml --pool http://10.0.0.5:29510 --name worker-1`
    """
    configure_logging(log_format, quiet=quiet, debug=debug)
    # Torch's threads sleep while they wait for each other, instead of taking the core from an agent or a broker.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from cutlayer.server_worker.program import Program

    overrides: dict[str, object] = {"run.min_agents": min_agents, "run.seed": seed, "run.epochs": epochs}
    if store is not None:
        overrides["activations.store"] = str(store.absolute())  # a path in the settings is found from their file
    if weights is not None:
        overrides |= {"model.weights": str(weights.absolute()), "model.pretrained": False}
    overrides |= dict(parse_setting(pair) for pair in settings or [])
    broker_at = broker_settings(
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
    program = Program(
        run,
        overrides,
        name=name or worker_name(),
        broker=broker_at,
        output=output,
        resume=resume,
        pool=pool,
        http_host=http_host,
        http_port=http_port,
        http_allowed_hosts=http_allow_host or (),
        connect_timeout_s=connect_timeout,
    )
    is_for_people = not quiet and log_format == "text"
    if is_for_people:
        _print_disclosure(program.disclosure)
    with GracefulStop("saving a checkpoint; Ctrl-C again to stop at once") as stop:
        path = program.run(stop.should_stop)
    if path is not None and is_for_people:
        _print_summary(path)
    if stop.received is signal.SIGINT:
        raise KeyboardInterrupt


@app.command(epilog=EXIT_CODES)
def vocabulary(
    texts: Annotated[list[Path], typer.Argument(help="Files of UTF-8, a text a line.", metavar="TEXTS")],
    output: Annotated[Path, typer.Option(help="The vocabulary, for [modalities.NAME] vocabulary of a run.")],
    size: Annotated[int, typer.Option(help="Tokens at most, the 256 bytes among them.")] = 8_000,
) -> None:
    """Make a vocabulary of your own texts: byte pair encoding, in which any text has tokens.

    Everybody in the run sees it, and it holds the words that are frequent in these texts. Make it of texts that may be
    seen.

    **Example**

    `server-worker vocabulary notes.txt --size 2000 --output words.json`
    """
    from cutlayer.server_worker.vocabulary_files import make_vocabulary

    content = make_vocabulary(texts, size)
    try:
        output.write_bytes(content)
    except OSError as error:
        raise SettingsError(f"--output {output}: {error.strerror}", "name a file in an existing folder") from error
    typer.echo(f"{output}: {len(content):,} B")


add_export(app)
add_serve(app)


def _print_disclosure(disclosure: Disclosure) -> None:
    from rich.console import Console

    from cutlayer.server_worker.disclosure_view import disclosure_view

    Console().print(disclosure_view(disclosure))


def _print_summary(path: Path) -> None:
    from rich.console import Console

    from cutlayer.dashboards.run_record import load_run, parse_run
    from cutlayer.dashboards.summary import summary

    Console().print(summary(parse_run(load_run(path), str(path))))
    typer.echo(path)


def main() -> None:
    """Run the command line."""
    run_app(app, name="server-worker")
