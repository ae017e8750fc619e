"""One `server-worker start`, from its settings to its run.json."""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.budget import budget_of
from cutlayer.broker.errors import CheckpointError, SettingsError
from cutlayer.broker.leases import LeaseTable
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import RunPhase
from cutlayer.broker.model_chunks import describe_model
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.topics import WorkerTopics
from cutlayer.broker.worker_session import WorkerLimits, WorkerSession
from cutlayer.compression import CodecError, codec_from_name
from cutlayer.dashboards.live_page import load_live_page
from cutlayer.dashboards.live_stats import LiveStats, RunFacts
from cutlayer.server_worker.agent_table import MAX_TOP
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointStore
from cutlayer.server_worker.clients_route import clients_route
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.events import BudgetComputed
from cutlayer.server_worker.http_routes import health_route, metrics_route, page_route, stats_route
from cutlayer.server_worker.http_server import HttpServer
from cutlayer.server_worker.metrics import WorkerMetrics
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.pool import Pool
from cutlayer.server_worker.rounds import compare_manifests
from cutlayer.server_worker.run_book import RunBook, versions
from cutlayer.server_worker.runtime import WorkerOptions, WorkerRuntime
from cutlayer.server_worker.settings import RunSettings, load_run_settings
from cutlayer.server_worker.worker_reports import WorkerReports

__all__ = ["Program", "Resumed", "make_engine", "make_manifest", "make_session", "resume_from", "write_json"]

log = logging.getLogger(__name__)


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
    ) -> None:
        WorkerTopics(name)
        settings = load_run_settings(run_file, overrides)
        check_codecs(settings)
        torch.set_num_threads(num_threads(settings))
        runs = Path("runs") / settings.run.name
        # The replicas of a pool have each a folder of their own: several may run on one machine.
        self._output = _writable(output or (runs if pool is None else runs / name))
        store = CheckpointStore(self._output / "checkpoints")
        built = build(settings, settings.run.seed)
        manifest = make_manifest(settings, built)
        engine = make_engine(settings, built)
        resumed = resume_from(store, engine, manifest) if resume else Resumed(manifest)
        self._name = name
        self._version = versions().get("cutlayer", "")
        self.session = make_session(
            settings, resumed.manifest, name, is_pooled=pool is not None, resumed=resumed, version=engine.version
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
            incarnation=self.session.incarnation,
        )
        self._metrics(BudgetComputed(self._budget.total_bytes, self._budget.agent_bytes))
        transport = MqttTransport(broker, client_id=f"cutlayer-worker-{name}", identity=name)
        self._runtime = WorkerRuntime(
            transport,
            self.session,
            engine,
            built.tokenizer_file,
            RunBook(resumed.manifest, built.num_tokenizer_parameters),
            checkpoints=store,
            pool=None if pool is None else make_pool(settings, pool, name, built.encoder.head.weight.device),
            on_event=self._metrics,
            reports=WorkerReports(self._metrics.store, self._metrics.agents),
            url=broker.url,
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
            Path of run.json, or None where nothing was committed and so nothing is written.
        """
        manifest = self.session.manifest
        log.info("model %s: %d parameters", manifest.model, manifest.num_parameters)
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
            self._http.close()
        if not self.session.window:
            return None
        path = self._output / "run.json"
        write_json(path, self._summary())
        log.info("%s", path)
        return path

    def _summary(self) -> dict[str, Any]:
        runtime, now = self._runtime, time.monotonic()
        started_at = now if runtime.training_started_at is None else runtime.training_started_at
        committed_at = started_at if runtime.last_commit_at is None else runtime.last_commit_at
        content = runtime.book.as_json(
            worker=self._name,
            windows=self.session.window,
            committed_samples=self.session.committed_samples,
            duration_s=now - started_at,
            training_s=committed_at - started_at,
            reason=self._reason,
            store=self._metrics.store,
        )
        return {**content, "broker_budget": self._budget.as_json()}

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
            "agents": len(self.session.leases),
            "window": self.session.window,
        }
        return self._runtime.is_connected, facts


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a worker starts from.

    Attributes:
        manifest: The run.
        ledger: Steps that are committed; None for none.
        window: Windows that are committed.
        committed_samples: Samples that are committed.
        known_samples: Samples of each agent that the run has seen.
    """

    manifest: Manifest
    ledger: Ledger | None = None
    window: int = 0
    committed_samples: int = 0
    known_samples: Mapping[str, int] = field(default_factory=dict)


def num_threads(settings: RunSettings) -> int:
    """Return how many threads torch may use: as the settings say, or one less than there are cores.

    The last core is for agents, brokers and the network: with a thread on each, whoever else wants to run stalls all
    of torch's threads, since they wait for each other (measured on two busy cores: 2.4-4.0 s for 128 samples with two
    threads that spin, 0.47-0.67 s with two that sleep, 0.47-0.49 s with one).
    """
    return settings.worker.threads or max((os.cpu_count() or 2) - 1, 1)


def check_codecs(settings: RunSettings) -> None:
    """Check that every codec of the settings exists.

    Raises:
        SettingsError: When one does not; the text lists those that do.
    """
    for kind, name in settings.codecs:
        try:
            codec_from_name(name)
        except CodecError as error:
            raise SettingsError(f"[codecs] {kind} = {name!r}: {error}", "name one of them") from error


def make_manifest(settings: RunSettings, built: BuiltModel, *, run_id: str | None = None) -> Manifest:
    """Write the manifest of a new run.

    Args:
        settings: The run.
        built: Its model.
        run_id: Its unique name; by default the run's name and eight random digits.
    """
    return Manifest(
        run_id=run_id or f"{settings.run.name[:55]}-{secrets.token_hex(4)}",
        seed=settings.run.seed,
        epochs=settings.run.epochs,
        microbatch_samples=settings.run.microbatch_samples,
        width=built.width,
        model=built.name,
        num_parameters=built.num_parameters,
        modalities=dict(settings.modalities),
        fusion=settings.model.fusion,
        task=settings.task,
        codecs=settings.codecs,
        window=settings.window,
        tokenizers=describe_model(built.tokenizer_file),
        evaluation=settings.evaluation,
        telemetry_s=settings.telemetry_s,
    )


def make_engine(settings: RunSettings, built: BuiltModel) -> Engine:
    """Build the arithmetic of a run."""
    return Engine(
        built.encoder,
        settings.optimizer,
        seed=settings.run.seed,
        modality_dropout=settings.model.modality_dropout,
    )


def make_session(
    settings: RunSettings,
    manifest: Manifest,
    name: str,
    *,
    is_pooled: bool = False,
    resumed: Resumed | None = None,
    version: int = 0,
    incarnation: int | None = None,
    lease_seed: int | None = None,
) -> WorkerSession:
    """Build a worker's side of the conversation.

    Args:
        settings: The run.
        manifest: Its manifest.
        name: The worker's name.
        is_pooled: Whether it is one of a pool.
        resumed: Where it starts from.
        version: Version of the weights.
        incarnation: Start of the process in milliseconds since the epoch; now when left out.
        lease_seed: Makes lease numbers reproducible, for simulations.
    """
    limits = WorkerLimits(
        credits=settings.worker.credits,
        max_batch_samples=settings.worker.max_batch_samples,
        lease_s=settings.worker.lease_s,
        absence_grace_s=settings.run.absence_grace_s,
        min_agents=settings.run.min_agents,
        is_service=settings.run.service,
    )
    numbers = random.SystemRandom() if lease_seed is None else random.Random(lease_seed)  # noqa: S311 - names, no secrets
    resumed = resumed or Resumed(manifest)
    return WorkerSession(
        name,
        time.time_ns() // 1_000_000 if incarnation is None else incarnation,
        manifest,
        limits,
        LeaseTable(lambda: numbers.getrandbits(32)),
        is_pooled=is_pooled,
        ledger=resumed.ledger,
        committed_samples=resumed.committed_samples,
        window=resumed.window,
        version=version,
        known_samples=resumed.known_samples,
    )


def make_pool(settings: RunSettings, lighthouse: str, name: str, device: torch.device) -> Pool:
    """Meet the other replicas of the encoder.

    Args:
        settings: The run.
        lighthouse: Address of the pool's lighthouse.
        name: The worker's name.
        device: Where the encoder is: NCCL on a GPU, gloo otherwise.

    Raises:
        SettingsError: When torchft is not installed.
        PoolError: When the lighthouse cannot be reached.
    """
    os.environ.setdefault("RUST_LOG", "error")  # torchft tells of every round on standard error otherwise
    try:
        from cutlayer.server_worker.torchft_pool import PoolTimeouts, TorchftPool
    except ImportError as error:
        raise SettingsError(f"--pool needs torchft: {error}", 'pip install "cutlayer[server,pool]"') from error
    seconds = settings.worker.round_timeout_s
    timeouts = PoolTimeouts(quorum_s=seconds, exchange_s=seconds)
    return TorchftPool(lighthouse, name, device=device, timeouts=timeouts)


def resume_from(store: CheckpointStore, engine: Engine | CountingEngine, manifest: Manifest) -> Resumed:
    """Load the newest checkpoint into an engine.

    Args:
        store: Where the checkpoints are.
        engine: Takes weights and optimizer state.
        manifest: The run as the settings describe it; its id may be another.

    Raises:
        CheckpointError: When there is no checkpoint, or it belongs to a run with other settings.
    """
    restored = store.load_latest()
    for problem in restored.passed_over:
        log.warning("passed over a damaged checkpoint: %s", problem)
    checkpoint = restored.checkpoint
    saved = Manifest.from_bytes(str(checkpoint.meta["manifest"]).encode())
    if difference := compare_manifests(manifest, saved):
        raise CheckpointError(
            str(restored.path),
            f"it belongs to a run with other settings ({difference}); give the same --run and flags",
        )
    try:
        engine.load_state_dict(checkpoint.state)
    except ValueError as error:
        raise CheckpointError(str(restored.path), f"{error}; give the same [model] and [optimizer]") from error
    window, committed = _counter(checkpoint, "window"), _counter(checkpoint, "committed_samples")
    log.info("resumed %s at window %d from %s", saved.run_id, window, restored.path.name)
    known_samples = checkpoint.meta.get("known_samples", {})
    assert isinstance(known_samples, dict)
    return Resumed(
        saved, Ledger.from_bytes(checkpoint.ledger), window, committed, cast("dict[str, int]", known_samples)
    )


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


def _counter(checkpoint: Checkpoint, key: str) -> int:
    value = checkpoint.meta[key]
    assert isinstance(value, int), "the checkpoint's digest is right, so its counters are what was written"
    return value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
