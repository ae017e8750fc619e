"""`edge-agent evaluate` and `edge-agent predict`."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
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
from cutlayer.broker.command_line import EXIT_CODES, GracefulStop, configure_logging
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
    OwnTokenizer,
    OwnWeights,
    Quiet,
    ShardText,
    Topic,
    client_identifier,
    data_options,
)
from cutlayer.edge_agent.rate_text import parse_rate

if TYPE_CHECKING:
    from cutlayer.broker.broker_settings import BrokerSettings
    from cutlayer.broker.manifest import Manifest
    from cutlayer.edge_agent.batches import Dataset
    from cutlayer.edge_agent.data_request import Rows
    from cutlayer.edge_agent.runtime import AgentRuntime
    from cutlayer.edge_agent.site_parts import SiteParts
    from cutlayer.edge_agent.visit import Visit

__all__ = ["add_visits"]

log = logging.getLogger(__name__)

SplitText = Annotated[
    str, typer.Option("--split", help="Which rows: test, train, val (as for training, docs/data.md), or all.")
]
WorkerTimeout = Annotated[
    float,
    typer.Option(min=0.0, help="Seconds that a worker is waited for, at the beginning and when the last one was lost."),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the same to a file, for programs.", dir_okay=False)
]
OutputFile = Annotated[
    Path,
    typer.Option(
        help="File of the predictions: .csv, or .parquet. It appears when it is whole; one of that name is replaced "
        "then.",
    ),
]
Matches = Annotated[int, typer.Option(min=1, help="Of retrieval: matches of each row, in each direction.")]


def add_visits(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command(epilog=EXIT_CODES)(evaluate)
    app.command(epilog=EXIT_CODES)(predict)


def evaluate(
    topic: Topic,
    data: Data,
    split: SplitText = "test",
    json: JsonFile = None,
    shard: ShardText = "0/1",
    data_option: DataOption = None,
    max_unreadable: MaxUnreadable = None,
    max_uplink: MaxUplink = None,
    head: HeadFile = None,
    tokenizer: OwnTokenizer = None,
    tokenizer_weights: OwnWeights = None,
    connect_timeout: ConnectTimeout = 20.0,
    worker_timeout: WorkerTimeout = 60.0,
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
    """Say how good a trained model is on this site's own samples, given all of their modalities and each alone.

    The model is a worker's: of a run that trains, or of `server-worker serve`. Activations go up and outputs come down;
    labels stay here, and so do the metrics. It takes no part in the training. While an agent of this site trains, it
    needs another topic than that (and rights to it).

    **Examples**

    `edge-agent evaluate --topic clinic/07 --data ./scans`

    `edge-agent evaluate --topic clinic/07 --data ./new-scans --split all --json metrics.json --broker mqtts://hub`
    """
    _begin(log_format, quiet=quiet, debug=debug)
    from cutlayer.edge_agent.evaluation_text import evaluation_as_json, evaluation_table
    from cutlayer.edge_agent.visit_evaluation import EvaluationVisit

    if json is not None and not json.absolute().parent.is_dir():
        raise SettingsError(f"--json {json}: {json.parent} is no folder", "name a file in an existing folder")
    visit = EvaluationVisit(patience_s=worker_timeout)
    site = _site_parts(head, tokenizer, tokenizer_weights)
    options = data_options(data_option, max_unreadable)
    opener = _Opener(data, split, shard, options, wants_targets=True)
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
    runtime = _runtime(topic, settings, opener.open, visit, connect_timeout, max_uplink, site)
    stop = _run(runtime, visit, is_shown=not quiet and log_format == "text")
    if not visit.is_complete:
        log.warning("stopped before all samples were answered: there is no result")
        raise KeyboardInterrupt
    if json is not None:
        content = evaluation_as_json(visit, runtime.wire, data, split)
        try:
            json.write_text(content, encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"--json {json}: {error.strerror}", "name another file") from error
    from rich.console import Console

    Console().print(evaluation_table(visit, runtime.wire))
    if stop is signal.SIGINT:
        raise KeyboardInterrupt


def predict(
    topic: Topic,
    data: Data,
    output: OutputFile = Path("predictions.csv"),
    split: SplitText = "all",
    matches: Matches = 5,
    shard: ShardText = "0/1",
    data_option: DataOption = None,
    max_unreadable: MaxUnreadable = None,
    max_uplink: MaxUplink = None,
    head: HeadFile = None,
    tokenizer: OwnTokenizer = None,
    tokenizer_weights: OwnWeights = None,
    connect_timeout: ConnectTimeout = 20.0,
    worker_timeout: WorkerTimeout = 60.0,
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
    """Write a trained model's predictions for this site's own samples into a file that stays here.

    A row a sample: the class and a probability of each, or numbers in their units, or the best matches of another
    modality. The data need no labels. The model is a worker's: of a run that trains, or of `server-worker serve`.
    Activations go up and outputs come down. While an agent of this site trains, it needs another topic than that (and
    rights to it).

    **Examples**

    `edge-agent predict --topic clinic/07 --data ./new-scans`

    `edge-agent predict --topic clinic/07 --data ./new-scans/data.csv --output out.parquet --broker mqtts://hub`
    """
    _begin(log_format, quiet=quiet, debug=debug)
    from cutlayer.edge_agent.prediction_file import check_output
    from cutlayer.edge_agent.visit_prediction import PredictionVisit

    check_output(output)
    visit = PredictionVisit(output, num_matches=matches, patience_s=worker_timeout)
    site = _site_parts(head, tokenizer, tokenizer_weights)
    options = data_options(data_option, max_unreadable)
    opener = _Opener(data, split, shard, options, wants_targets=False)

    def opened(manifest: Manifest) -> Dataset:
        dataset = opener.open(manifest)
        visit.names = opener.names
        return dataset

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
    runtime = _runtime(topic, settings, opened, visit, connect_timeout, max_uplink, site)
    try:
        stop = _run(runtime, visit, is_shown=not quiet and log_format == "text")
        if not visit.is_complete:
            log.warning("stopped before all samples were answered: %s is not written", output)
            raise KeyboardInterrupt
        path = visit.finish()
    finally:
        visit.discard()
    if not quiet:
        wire = runtime.wire
        empty = f", {visit.num_empty:,} of them empty: nothing to send, or unreadable" if visit.num_empty else ""
        typer.echo(
            f"{path}: {visit.progress.num_passes:,} rows{empty}; {wire.sent_bytes:,} B sent, "
            f"{wire.received_bytes:,} B received"
        )
    if stop is signal.SIGINT:
        raise KeyboardInterrupt


class _Opener:
    """Opens the data of a visit once the run is known; checks before what can be checked."""

    def __init__(self, data: str, split: str, shard: str, options: dict[str, object], *, wants_targets: bool) -> None:
        from cutlayer.edge_agent.data_request import ROWS
        from cutlayer.edge_agent.datasets import check_data
        from cutlayer.edge_agent.partition import Shard
        from cutlayer.edge_agent.row_names import RowNames

        rows = next((name for name in ROWS if name == split), None)
        if rows is None:
            raise SettingsError(f"--split {split!r} is unknown", f"choose {', '.join(ROWS[:-1])} or {ROWS[-1]}")
        self._data, self._options, self._wants_targets = data, options, wants_targets
        self._rows: Rows = rows
        self._shard = Shard.parse(shard)
        self.names: RowNames | None = None
        check_data(data, shard=self._shard, options=options)

    def open(self, manifest: Manifest) -> Dataset:
        from cutlayer.edge_agent.visited_data import open_visited

        dataset, self.names = open_visited(
            self._data,
            manifest,
            self._rows,
            shard=self._shard,
            options=self._options,
            wants_targets=self._wants_targets,
        )
        return dataset


def _begin(log_format: str, *, quiet: bool, debug: bool) -> None:
    configure_logging(log_format, quiet=quiet, debug=debug)
    # More threads gain nothing at a few milliseconds a microbatch. Set before NumPy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _site_parts(head: Path | None, tokenizers: list[str] | None, weights: list[str] | None) -> SiteParts:
    from cutlayer.edge_agent.own_tokenizers import check_sources, parse_sources
    from cutlayer.edge_agent.site_parts import SiteParts

    sources = parse_sources(tokenizers or (), weights or (), ())
    check_sources(sources)
    return SiteParts(head=head, tokenizers=sources)


def _runtime(
    topic: str,
    settings: BrokerSettings,
    open_data: Callable[[Manifest], Dataset],
    visit: Visit,
    connect_timeout_s: float,
    max_uplink: str | None,
    site: SiteParts,
) -> AgentRuntime:
    from cutlayer.broker.mqtt import MqttTransport
    from cutlayer.broker.topics import AgentTopics
    from cutlayer.edge_agent.runtime import AgentOptions, AgentRuntime

    AgentTopics(topic)
    limit = None if max_uplink is None else parse_rate(max_uplink, name="--max-uplink")
    incarnation = time.time_ns() // 1_000_000
    return AgentRuntime(
        MqttTransport(settings, client_id=client_identifier(topic, incarnation), identity=topic),
        topic,
        incarnation,
        open_data,
        url=settings.url,
        options=AgentOptions(
            connect_timeout_s=connect_timeout_s,
            software=f"cutlayer {importlib.metadata.version('cutlayer')}",
            max_uplink_bytes_per_s=limit,
            visit=visit,
            site=site,
        ),
    )


def _run(runtime: AgentRuntime, visit: Visit, *, is_shown: bool) -> signal.Signals | None:
    """Run a visit, with a bar on a terminal; return the signal that stopped it."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with (
        GracefulStop("leaving; Ctrl-C again to stop at once") as stop,
        Progress(console=console, transient=True, disable=not (is_shown and console.is_terminal)) as bar,
    ):
        task = bar.add_task("samples", total=None)
        visit.on_progress = lambda progress: bar.update(task, completed=progress.num_done, total=progress.num_passes)
        runtime.run(stop.should_stop)
    return stop.received
