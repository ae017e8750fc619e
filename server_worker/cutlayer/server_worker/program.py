"""One `server-worker start`, from its settings to its run.json."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.budget import budget_of
from cutlayer.broker.errors import SettingsError
from cutlayer.broker.messages import RunPhase
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.topics import WorkerTopics
from cutlayer.dashboards.live_page import load_live_page
from cutlayer.dashboards.live_stats import LiveStats, RunFacts
from cutlayer.server_worker.agent_table import MAX_TOP
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.clients_route import clients_route
from cutlayer.server_worker.disclosure import disclose
from cutlayer.server_worker.events import BudgetComputed, PhaseChanged
from cutlayer.server_worker.folder_lock import FolderLock
from cutlayer.server_worker.http_routes import health_route, metrics_route, page_route, stats_route
from cutlayer.server_worker.http_server import HttpServer
from cutlayer.server_worker.metrics import WorkerMetrics
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.namesake import NamesakeLook
from cutlayer.server_worker.resuming import Resumed, load_trained, resume_from
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_json import run_json, selection_json
from cutlayer.server_worker.run_parts import (
    check_codecs,
    make_engine,
    make_keeper,
    make_manifest,
    make_pool,
    make_session,
    num_threads,
)
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import load_run_settings
from cutlayer.server_worker.store_keeper import StoreKeeper
from cutlayer.server_worker.tuning import goes_back_through_all
from cutlayer.server_worker.versions import versions
from cutlayer.server_worker.worker_options import WorkerOptions
from cutlayer.server_worker.worker_reports import WorkerReports

__all__ = ["Program", "write_json"]

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"


class Program:
    """One worker process.

    Args:
        run_file: Run settings.
        overrides: Values that win over the file's, by dotted key.
        name: The worker's name.
        broker: The broker.
        output: Folder for run.json and checkpoints; None for runs/<name of the run>.
        resume: Whether to go on from a checkpoint.
        pool: Address of the lighthouse of the worker's pool; None for a worker that trains alone.
        http_host: Address of the live page, /metrics and /healthz.
        http_port: Port; 0 for a free one.
        http_allowed_hosts: Host names under which the page is served, besides those of loopback.
        connect_timeout_s: How long the first connection is tried.
        only_visits: Whether it trains nothing: it loads a checkpoint, evaluates and predicts, and writes nothing.
        run_id: The run whose checkpoint is read, where the output folder holds those of several; empty for the newest.

    Attributes:
        disclosure: What the run tunes and sends, and what a server can infer from that.

    Raises:
        SettingsError: When a setting is wrong.
        CheckpointError: When there is nothing to resume from.
    """

    def __init__(
        self,
        run_file: Path,
        overrides: Mapping[str, object],
        *,
        name: str,
        broker: BrokerSettings,
        output: Path | None,
        resume: bool,
        pool: str | None,
        http_host: str,
        http_port: int,
        http_allowed_hosts: Sequence[str] = (),
        connect_timeout_s: float,
        only_visits: bool = False,
        run_id: str = "",
    ) -> None:
        WorkerTopics(name)
        settings = load_run_settings(run_file, overrides)
        check_codecs(settings)
        torch.set_num_threads(num_threads(settings))
        runs = Path("runs") / settings.run.name
        # The replicas of a pool have each a folder of their own: several may run on one machine.
        wanted = output or (runs if pool is None else runs / name)
        self._output = wanted if only_visits else _writable(wanted)
        self._lock = None if only_visits else FolderLock(self._output)
        self._only_visits = only_visits
        self._is_pooled = pool is not None
        self._checkpoints = store = CheckpointStore(self._output / CHECKPOINTS, run_id=run_id)
        built = build(settings, settings.run.seed)
        manifest = make_manifest(settings, built)
        engine = make_engine(settings, built)
        resumed = Resumed(manifest)
        if only_visits:
            resumed, restored = load_trained(store, engine, manifest, "serve")
            log.info("loaded run %s, window %d, from %s", resumed.manifest.run_id, resumed.window, restored.path)
        elif resume:
            resumed = resume_from(store, engine, manifest)
        self._name = name
        self._version = versions().get("cutlayer", "")
        self.session = make_session(
            settings,
            resumed.manifest,
            name,
            is_pooled=pool is not None,
            resumed=resumed,
            version=engine.version,
            only_visits=only_visits,
        )
        self.disclosure = disclose(
            resumed.manifest,
            built.num_tokenizer_parameters,
            goes_back_through_all=goes_back_through_all(built.encoder),
        )
        self._budget = budget_of(
            resumed.manifest,
            credits=settings.worker.credits,
            num_agents=settings.run.min_agents,
            max_packet_bytes=broker.max_packet_bytes,
            is_pooled=pool is not None,
        )
        self._budget_problems = tuple(self._budget.problems(broker))
        self._metrics = WorkerMetrics(
            name,
            resumed.manifest,
            num_client_parameters=built.num_tokenizer_parameters,
            joins_run=resume or only_visits or pool is not None,
        )
        if only_visits:  # it enters no phase
            self._metrics(PhaseChanged(self.session.phase))
        self._metrics(BudgetComputed(self._budget.total_bytes, self._budget.agent_bytes))
        self._namesake = NamesakeLook(
            MqttTransport(broker, client_id=f"cutlayer-looks-for-{name}-{secrets.token_hex(4)}", identity=name),
            name,
            url=broker.url,
            connect_timeout_s=connect_timeout_s,
        )
        transport = MqttTransport(broker, client_id=f"cutlayer-worker-{name}", identity=name)
        self._runtime = WorkerRuntime(
            transport,
            self.session,
            engine,
            built.tokenizer_file,
            RunBook(resumed.manifest, built.num_tokenizer_parameters),
            checkpoints=None if only_visits else store,
            pool=None if pool is None else make_pool(settings, pool, name, built.encoder.any_parameter.device),
            on_event=self._metrics,
            reports=WorkerReports(self._metrics.store, self._metrics.agents),
            url=broker.url,
            keeper=StoreKeeper() if only_visits else make_keeper(settings, self._output),
            options=WorkerOptions(
                connect_timeout_s=connect_timeout_s,
                checkpoint_every_windows=settings.worker.checkpoint_every_windows,
                drain_s=settings.worker.drain_s,
                asks_broker=True,
            ),
        )
        self._stats = LiveStats(
            {name: self._metrics.store}, self._facts, numbers=lambda: self._metrics.agents.numbers(MAX_TOP)
        )
        self._http_host = http_host
        self._http = HttpServer(
            {
                "/": page_route(load_live_page()),
                "/api/stats.json": stats_route(self._stats),
                "/metrics": metrics_route(self._metrics.registry),
                "/metrics/clients": clients_route(self._metrics.agents.numbers),
                "/healthz": health_route(self._health),
            },
            host=http_host,
            port=http_port,
            allowed_hosts=http_allowed_hosts,
        )

    def run(self, should_stop: Callable[[], bool]) -> Path | None:
        """Serve until the run has ended or `should_stop` says so, then write run.json.

        Returns:
            Path of run.json, or None where nothing is written: nothing was committed, or nothing is trained here.
        """
        try:
            self._namesake.run(should_stop)
            self._serve(should_stop)
            return self._write_record()
        finally:
            self._http.close()
            if self._lock is not None:
                self._lock.release()

    def _serve(self, should_stop: Callable[[], bool]) -> None:
        manifest = self.session.manifest
        if not self._only_visits:
            if not self._is_pooled:  # a worker of a pool learns later which run it is part of
                _tell_of_others(self._checkpoints, self._output, manifest.run_id)
            _keep_earlier(self._output / RUN_FILE, manifest.run_id)
        tuned = self.disclosure.tuned
        trains = f"{tuned.mode}: {tuned.trained_parameters} train"
        log.info(
            "model %s: %d parameters; %s",
            manifest.model,
            tuned.all_parameters,
            f"of window {self.session.window}, as they stay" if self._only_visits else trains,
        )
        log.info("%s", self._budget)
        for problem in self._budget_problems:
            log.warning("broker budget: %s", problem)
        address = f"http://{self._http_host}:{self._http.port}"
        log.info("live page at %s/, metrics at %s/metrics", address, address)
        self._stats.start()
        try:
            self._runtime.run(should_stop)
        finally:
            self._stats.finish()

    def _write_record(self) -> Path | None:
        if self._only_visits or not self.session.window:
            return None
        path = self._output / RUN_FILE
        write_json(path, self._summary())
        log.info("%s", path)
        return path

    def _summary(self) -> dict[str, Any]:
        runtime, now = self._runtime, time.monotonic()
        started_at = now if runtime.training_started_at is None else runtime.training_started_at
        committed_at = started_at if runtime.last_commit_at is None else runtime.last_commit_at
        content = run_json(
            runtime.book,
            worker=self._name,
            windows=self.session.window,
            committed_samples=self.session.committed_samples,
            duration_s=now - started_at,
            training_s=committed_at - started_at,
            reason=self._reason,
            store=self._metrics.store,
        )
        return {
            **content,
            **selection_json(self.session.selection, runtime.book),
            "broker_budget": self._budget.as_json(),
            "disclosure": self.disclosure.as_json(),
        }

    @property
    def _reason(self) -> str:
        """Why it is over, once it is."""
        return self.session.reason if self.session.phase is RunPhase.ENDED else "the worker was stopped"

    def _facts(self) -> RunFacts:
        return RunFacts(
            run=self.session.manifest.run_id,
            worker=self._name,
            model=self.session.manifest.model,
            version=self._version,
            phase=self.session.phase.value,
            reason=self._reason,
        )

    def _health(self) -> tuple[bool, dict[str, Any]]:
        facts = {
            "connected": self._runtime.is_connected,
            "run": self.session.manifest.run_id,
            "phase": self.session.phase.value,
            "agents": self.session.leases.num_taking_part,
            "window": self.session.window,
        }
        return self._runtime.is_connected, facts


def _tell_of_others(store: CheckpointStore, output: Path, run_id: str) -> None:
    """Warn of what other runs have trained in this output folder, and say what becomes of it."""
    for held in store.held():
        if held.run_id != run_id and held.committed_samples:
            log.warning(
                "%s holds checkpoints of run %s, up to window %d: they stay, and this new run begins from nothing\n"
                "fix: --resume goes on with the newest, --output FOLDER keeps runs apart, export and serve with "
                "--run-id %s still take it",
                output / CHECKPOINTS,
                held.run_id,
                held.window,
                held.run_id,
            )


def _keep_earlier(path: Path, run_id: str) -> None:
    """Put the record of another run aside: it would pass for this one's, and be overwritten at its end."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")).get("run_id")
    except (OSError, ValueError, AttributeError):
        return
    if isinstance(earlier, str) and earlier != run_id and re.fullmatch(r"[\w.-]{1,64}", earlier):
        kept = path.with_name(f"run-{earlier}.json")
        path.replace(kept)
        log.info("kept %s of the run before as %s", path.name, kept)


def _writable(folder: Path) -> Path:
    """Make the output folder: what cannot be written is said before the run and not after it.

    Raises:
        SettingsError: When it cannot be made or written to.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingsError(
            f"output folder {folder} cannot be written: {error.strerror}", "name another with --output"
        ) from error
    return folder


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
