"""The `edge-agent` command."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import time
from contextlib import ExitStack
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
from cutlayer.edge_agent.cli_flags import (
    ConnectTimeout,
    Data,
    DataOption,
    Debug,
    HeadFile,
    LogFormat,
    MaxUnreadable,
    MaxUplink,
    OwnState,
    OwnTokenizer,
    OwnWeights,
    Quiet,
    ShardText,
    Topic,
    client_identifier,
    data_options,
    parse_options,
)
from cutlayer.edge_agent.rate_text import parse_rate
from cutlayer.edge_agent.visit_cli import add_visits

__all__ = ["app", "client_identifier", "main", "parse_options"]

log = logging.getLogger(__name__)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="One site's part of a run: keeps data, labels and tokenizers, and sends compressed activations.",
    epilog=EXIT_CODES,
)

ACTIVATION_CHOICES = ("as-the-run", "every-step")
Activations = Annotated[
    str,
    typer.Option(
        help="`as-the-run`: workers may keep this site's activations where the run does (deleted with it), and later "
        "epochs send references. `every-step`: nothing of this site is kept, and each epoch sends them again.",
        envvar="CUTLAYER_ACTIVATIONS",
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        help="Serve this agent's own /metrics on a port, 0 for a free one. Off when left out: the worker exports what "
        "agents report, so most sites need no open port.",
        min=0,
        max=65_535,
    ),
]
MetricsHost = Annotated[str, typer.Option(help="Address of that port. Nothing there is protected by a password.")]


@app.callback()
def _group(version: VersionOption = False) -> None:
    """One site's part of a run."""


@app.command(epilog=EXIT_CODES)
def start(
    topic: Topic,
    data: Data,
    shard: ShardText = "0/1",
    data_option: DataOption = None,
    max_unreadable: MaxUnreadable = None,
    activations: Activations = "as-the-run",
    max_uplink: MaxUplink = None,
    head: HeadFile = None,
    tokenizer: OwnTokenizer = None,
    tokenizer_weights: OwnWeights = None,
    tokenizer_state: OwnState = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
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
    """Take part in the run that the broker announces, until it ends.

    The agent needs its broker, its topic and its data; all else comes with the run. It may come late, leave
    (Ctrl-C, or SIGTERM, which exits with 0) and come back under the same topic: what is committed is not trained on
    again.

    **Examples**

    `edge-agent start --topic clinic/07 --data demo:digits --shard 0/4`

    `edge-agent start --topic clinic/07 --data demo:digits --shard 0/4 --data-option alpha=0.5 --broker mqtts://hub`

    `edge-agent start --topic clinic/07 --data demo:digits --shard 0/4 --max-uplink 5mbit`

    `edge-agent start --topic clinic/07 --data ./scans --data-option image=scan_path --broker mqtts://hub`
    """
    configure_logging(log_format, quiet=quiet, debug=debug)
    # More threads gain nothing at a few milliseconds a step, and take memory each. Set before NumPy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from cutlayer.broker.mqtt import MqttTransport
    from cutlayer.broker.topics import AgentTopics
    from cutlayer.edge_agent.agent_options import AgentOptions
    from cutlayer.edge_agent.datasets import check_data, open_dataset
    from cutlayer.edge_agent.own_tokenizers import check_sources, parse_sources
    from cutlayer.edge_agent.partition import Shard
    from cutlayer.edge_agent.runtime import AgentRuntime
    from cutlayer.edge_agent.site_parts import SiteParts

    if activations not in ACTIVATION_CHOICES:
        raise SettingsError(f"--activations {activations!r} is unknown", f"use {' or '.join(ACTIVATION_CHOICES)}")
    limit = None if max_uplink is None else parse_rate(max_uplink, name="--max-uplink")
    part = Shard.parse(shard)
    options = data_options(data_option, max_unreadable)
    AgentTopics(topic)
    check_data(data, shard=part, options=options)  # a wrong flag shows now, not when a run begins
    tokenizers = parse_sources(tokenizer or (), tokenizer_weights or (), tokenizer_state or ())
    check_sources(tokenizers)
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
    incarnation = time.time_ns() // 1_000_000
    runtime = AgentRuntime(
        MqttTransport(settings, client_id=client_identifier(topic, incarnation), identity=topic),
        topic,
        incarnation,
        lambda manifest: open_dataset(data, shard=part, seed=manifest.seed, options=options, manifest=manifest),
        url=settings.url,
        options=AgentOptions(
            connect_timeout_s=connect_timeout,
            software=f"cutlayer {importlib.metadata.version('cutlayer')}",
            may_be_kept=activations != "every-step",
            max_uplink_bytes_per_s=limit,
            site=SiteParts(head=head, tokenizers=tokenizers),
        ),
    )
    with ExitStack() as stack:
        if metrics_port is not None:
            from cutlayer.edge_agent.metrics import AgentMetrics

            metrics = stack.enter_context(AgentMetrics(metrics_port, metrics_host))
            runtime.reporter.on_report = metrics.take
            log.info("metrics at http://%s:%d/metrics", metrics_host, metrics.port)
        stop = stack.enter_context(GracefulStop("leaving the run; Ctrl-C again to stop at once"))
        runtime.run(stop.should_stop)
    if runtime.reporter.last is not None:
        from cutlayer.dashboards.agent_cost import agent_cost_text

        log.info("%s", agent_cost_text(runtime.reporter.last))
    if stop.received is signal.SIGINT:
        raise KeyboardInterrupt


add_visits(app)


def main() -> None:
    """Run the command line."""
    run_app(app, name="edge-agent")
