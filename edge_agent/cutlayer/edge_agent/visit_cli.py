"""`edge-agent evaluate` and `edge-agent predict`."""

from __future__ import annotations

import logging
import os
import signal
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
from cutlayer.broker.command_line import EXIT_CODES, configure_logging
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
    data_options,
)

if TYPE_CHECKING:
    from cutlayer.broker.manifest import Manifest
    from cutlayer.edge_agent.batches import Dataset

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
    from cutlayer.edge_agent.visit_program import VisitData, make_runtime, own_parts, run_visit

    if json is not None and not json.absolute().parent.is_dir():
        raise SettingsError(f"--json {json}: {json.parent} is no folder", "name a file in an existing folder")
    visit = EvaluationVisit(patience_s=worker_timeout)
    site = own_parts(head, tokenizer, tokenizer_weights)
    options = data_options(data_option, max_unreadable)
    opener = VisitData(data, split, shard, options, wants_targets=True)
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
    runtime = make_runtime(topic, settings, opener.open, visit, connect_timeout, max_uplink, site)
    stop = run_visit(runtime, visit, is_shown=not quiet and log_format == "text")
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
    from cutlayer.edge_agent.visit_program import VisitData, make_runtime, own_parts, run_visit

    check_output(output)
    visit = PredictionVisit(output, num_matches=matches, patience_s=worker_timeout)
    site = own_parts(head, tokenizer, tokenizer_weights)
    options = data_options(data_option, max_unreadable)
    opener = VisitData(data, split, shard, options, wants_targets=False)

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
    runtime = make_runtime(topic, settings, opened, visit, connect_timeout, max_uplink, site)
    try:
        stop = run_visit(runtime, visit, is_shown=not quiet and log_format == "text")
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


def _begin(log_format: str, *, quiet: bool, debug: bool) -> None:
    configure_logging(log_format, quiet=quiet, debug=debug)
    # More threads gain nothing at a few milliseconds a microbatch. Set before NumPy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
