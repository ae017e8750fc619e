"""Makes the parts of a worker from the settings of a run: manifest, arithmetic, session, pool."""

from __future__ import annotations

import os
import random
import secrets
import time
from pathlib import Path

import torch

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.leases import LeaseTable
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.modalities import TokensSpec
from cutlayer.broker.model_chunks import describe_model
from cutlayer.broker.selection import Selection
from cutlayer.broker.site_optimizer import SiteOptimizer
from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.broker.worker_session import WorkerLimits, WorkerSession
from cutlayer.compression import CodecError, codec_from_name
from cutlayer.server_worker.disk_store import DiskActivationStore
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.model_builder import BuiltModel
from cutlayer.server_worker.pool import Pool
from cutlayer.server_worker.resuming import Resumed
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.store_keeper import StoreKeeper

__all__ = ["check_codecs", "make_engine", "make_keeper", "make_manifest", "make_pool", "make_session", "num_threads"]


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
    for name in settings.budget.ladder:
        try:
            codec_from_name(name)
        except CodecError as error:
            raise SettingsError(f"[budget] ladder has {name!r}: {error}", "name one of them") from error


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
        num_trained_parameters=built.num_trained_parameters,
        tuning=settings.tuning,
        modalities=dict(settings.modalities),
        fusion=settings.model.fusion,
        task=settings.task,
        codecs=settings.codecs,
        window=settings.window,
        tokenizers=describe_model(built.tokenizer_file).model_copy(update=settings.tokenizers.model_dump()),
        evaluation=settings.evaluation,
        telemetry_s=settings.telemetry_s,
        telemetry_share=settings.telemetry_share,
        activations=settings.activations.mode,
        reduction=dict(settings.activations.reduction),
        budget=settings.budget,
        head=settings.model.head_start if settings.model.head == "agent" else None,
        site_optimizer=_site_optimizer(settings),
    )


def _site_optimizer(settings: RunSettings) -> SiteOptimizer | None:
    """Return how agents train what is their own: as the worker does the encoder."""
    has_tokenizers = any(isinstance(spec, TokensSpec) for spec in settings.modalities.values())
    if settings.model.head == "server" and not (has_tokenizers and settings.tokenizers.mode == "trainable"):
        return None
    return SiteOptimizer(is_endless=settings.run.service, **settings.optimizer.model_dump())


def make_engine(settings: RunSettings, built: BuiltModel) -> Engine:
    """Build the arithmetic of a run."""
    return Engine(
        built.encoder,
        settings.optimizer,
        seed=settings.run.seed,
        modality_dropout=settings.model.modality_dropout,
        contrasts_window=isinstance(settings.task, RetrievalSpec) and settings.task.negatives == "window",
    )


def make_keeper(settings: RunSettings, output: Path) -> StoreKeeper:
    """Build what opens the store of activations.

    Args:
        settings: The run.
        output: The worker's output folder, where the store is unless the settings name another place.
    """
    wanted = settings.activations
    if wanted.mode == "every-step":
        return StoreKeeper()
    folder = wanted.store or output / "activations"
    return StoreKeeper(lambda run_id: DiskActivationStore(folder, run_id, max_bytes=wanted.store_bytes))


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
    only_visits: bool = False,
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
        only_visits: Whether it trains nothing, and evaluates and predicts with what it starts from.
    """
    limits = WorkerLimits(
        credits=settings.worker.credits,
        max_batch_samples=settings.worker.max_batch_samples,
        lease_s=settings.worker.lease_s,
        absence_grace_s=settings.run.absence_grace_s,
        min_agents=settings.run.min_agents,
        is_service=settings.run.service,
        only_visits=only_visits,
    )
    numbers = random.SystemRandom() if lease_seed is None else random.Random(lease_seed)  # noqa: S311 - names, no secrets
    resumed = resumed or Resumed(manifest)
    selection = None
    if manifest.evaluation.selects and not only_visits:
        selection = Selection(manifest.evaluation, manifest.task, manifest.epochs)
        if resumed.selection is not None:
            selection.load(resumed.selection)
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
        selection=selection,
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
