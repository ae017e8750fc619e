"""What the commands that visit have in common: a visit's data, its driver, and its run at a terminal."""

from __future__ import annotations

import importlib.metadata
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.command_line import GracefulStop
from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.topics import AgentTopics
from cutlayer.edge_agent.agent_options import AgentOptions
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.cli_flags import client_identifier
from cutlayer.edge_agent.data_request import ROWS, Rows
from cutlayer.edge_agent.datasets import check_data
from cutlayer.edge_agent.own_tokenizers import check_sources, parse_sources
from cutlayer.edge_agent.partition import Shard
from cutlayer.edge_agent.rate_text import parse_rate
from cutlayer.edge_agent.row_names import RowNames
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.edge_agent.site_parts import SiteParts
from cutlayer.edge_agent.visit import Visit
from cutlayer.edge_agent.visited_data import open_visited

__all__ = ["VisitData", "make_runtime", "own_parts", "run_visit"]


class VisitData:
    """Opens the data of a visit once the run is known; checks before what can be checked.

    Args:
        data: What `--data` says.
        split: Which rows.
        shard: Which part, as text.
        options: The data set's own options.
        wants_targets: Whether targets are of use.

    Raises:
        SettingsError: When one of them cannot be.

    Attributes:
        names: What each sample's row is called, once the data are open.
    """

    def __init__(
        self, data: str, split: str, shard: str, options: Mapping[str, object], *, wants_targets: bool
    ) -> None:
        rows = next((name for name in ROWS if name == split), None)
        if rows is None:
            raise SettingsError(f"--split {split!r} is unknown", f"choose {', '.join(ROWS[:-1])} or {ROWS[-1]}")
        self._data, self._options, self._wants_targets = data, options, wants_targets
        self._rows: Rows = rows
        self._shard = Shard.parse(shard)
        self.names: RowNames | None = None
        check_data(data, shard=self._shard, options=options)

    def open(self, manifest: Manifest) -> Dataset:
        """Open them for a run.

        Raises:
            SettingsError: As `open_dataset`.
        """
        dataset, self.names = open_visited(
            self._data,
            manifest,
            self._rows,
            shard=self._shard,
            options=self._options,
            wants_targets=self._wants_targets,
        )
        return dataset


def own_parts(head: Path | None, tokenizers: Sequence[str] | None, weights: Sequence[str] | None) -> SiteParts:
    """Return what the site has of the model by itself, as the flags say.

    Raises:
        SettingsError: When they cannot be.
    """
    sources = parse_sources(tokenizers or (), weights or (), ())
    check_sources(sources)
    return SiteParts(head=head, tokenizers=sources)


def make_runtime(
    topic: str,
    settings: BrokerSettings,
    open_data: Callable[[Manifest], Dataset],
    visit: Visit,
    connect_timeout_s: float,
    max_uplink: str | None,
    site: SiteParts,
) -> AgentRuntime:
    """Build the driver of a visit over MQTT.

    Raises:
        SettingsError: When the topic or the limit cannot be.
    """
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


def run_visit(runtime: AgentRuntime, visit: Visit, *, is_shown: bool) -> signal.Signals | None:
    """Run a visit, with a bar on a terminal; return the signal that stopped it."""
    console = Console(stderr=True)
    with (
        GracefulStop("leaving; Ctrl-C again to stop at once") as stop,
        Progress(console=console, transient=True, disable=not (is_shown and console.is_terminal)) as bar,
    ):
        task = bar.add_task("samples", total=None)
        visit.on_progress = lambda progress: bar.update(task, completed=progress.num_done, total=progress.num_passes)
        runtime.run(stop.should_stop)
    return stop.received
