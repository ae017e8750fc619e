"""Where a worker starts from: the beginning of a run, its last checkpoint, or the weights of one that is used only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from cutlayer.broker.errors import CheckpointError
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import Manifest
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointStore, RestoredCheckpoint
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.engine import Engine

__all__ = ["Resumed", "load_trained", "resume_from", "saved_manifest"]

log = logging.getLogger(__name__)

_OF_THE_MODEL = (
    "model",
    "width",
    "num_parameters",
    "tuning",
    "modalities",
    "fusion",
    "task",
    "head",
    "tokenizers.digest",
)
"""The client side's first weights are drawn or read before a run: a digest stands for seed and file."""
_LONGEST_VALUE = 60


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a worker starts from.

    Attributes:
        manifest: The run.
        ledger: Steps that are committed; None for none.
        window: Windows that are committed.
        committed_samples: Samples that are committed.
        known_samples: Samples of each agent that the run has seen.
        selection: What was judged and chosen, where weights are; else None.
    """

    manifest: Manifest
    ledger: Ledger | None = None
    window: int = 0
    committed_samples: int = 0
    known_samples: Mapping[str, int] = field(default_factory=dict)
    selection: Mapping[str, Any] | None = None


def resume_from(store: CheckpointStore, engine: Engine | CountingEngine, manifest: Manifest) -> Resumed:
    """Load the newest checkpoint into an engine, and go on with its run.

    Args:
        store: Where the checkpoints are.
        engine: Takes weights and optimizer state.
        manifest: The run as the settings describe it; its id may be another.

    Raises:
        CheckpointError: When there is no checkpoint, or it belongs to a run with other settings.
    """
    doing = "resume from"
    restored = _newest(store, doing, "start without --resume, or name the folder of the run with --output")
    checkpoint, saved = restored.checkpoint, saved_manifest(restored)
    if differences := _differences(manifest, saved, sorted(type(saved).model_fields.keys() - {"run_id"})):
        raise CheckpointError(
            str(restored.path),
            f"it belongs to a run with other settings ({differences})",
            doing=doing,
            fix="give the --run, --set and other flags that the run was started with, or start without --resume",
        )
    try:
        engine.load_state_dict(checkpoint.state)
        engine.load_candidates(checkpoint.candidates)
    except ValueError as error:
        raise CheckpointError(
            str(restored.path), str(error), doing=doing, fix="give the [model] and [optimizer] of that run"
        ) from error
    resumed = _resumed(checkpoint, saved)
    log.info("resumed %s at window %d from %s", saved.run_id, resumed.window, restored.path.name)
    return resumed


def load_trained(
    store: CheckpointStore,
    engine: Engine | CountingEngine,
    manifest: Manifest,
    doing: Literal["serve", "export"],
    check: Callable[[Manifest, RestoredCheckpoint], None] = lambda *_: None,
) -> tuple[Resumed, RestoredCheckpoint]:
    """Load the newest checkpoint's weights into an engine that trains no further.

    Only what says which model it is and what goes in has to be as in the run: not how it was trained.

    Args:
        store: Where the checkpoints are.
        engine: Takes the weights.
        manifest: The run as the settings describe it.
        doing: What they are for.
        check: May refuse a checkpoint, before it is compared.

    Returns:
        The run as it stands in the checkpoint, and the checkpoint.

    Raises:
        CheckpointError: When there is no checkpoint, or it is of another model.
    """
    restored = _newest(
        store, doing, "train first (server-worker start), or name the output folder of the worker that did with --from"
    )
    saved = saved_manifest(restored)
    check(saved, restored)
    fix = (
        "give the --run of that run, and with --set what it was started with: --seed 7 is --set run.seed=7, "
        "--weights FILE is --set model.weights=FILE"
    )
    is_drawn_alike = manifest.tokenizers.digest == saved.tokenizers.digest
    if differences := _differences(manifest, saved, _OF_THE_MODEL if is_drawn_alike else ("seed", *_OF_THE_MODEL)):
        raise CheckpointError(str(restored.path), f"it is of another model ({differences})", doing=doing, fix=fix)
    try:
        engine.load_state_dict(replace(restored.checkpoint.state, optimizer={}))
    except ValueError as error:
        raise CheckpointError(str(restored.path), str(error), doing=doing, fix=fix) from error
    return _resumed(restored.checkpoint, saved), restored


def saved_manifest(restored: RestoredCheckpoint) -> Manifest:
    """Return the manifest of the run that a checkpoint is of."""
    return Manifest.from_bytes(str(restored.checkpoint.meta["manifest"]).encode())


def _newest(store: CheckpointStore, doing: str, fix: str) -> RestoredCheckpoint:
    try:
        restored = store.load_latest()
    except CheckpointError as error:
        raise CheckpointError(error.path, error.detail, doing=doing, fix=fix) from error
    for problem in restored.passed_over:
        log.warning("passed over a damaged checkpoint: %s", problem)
    return restored


def _resumed(checkpoint: Checkpoint, saved: Manifest) -> Resumed:
    known_samples = checkpoint.meta.get("known_samples", {})
    assert isinstance(known_samples, dict)
    return Resumed(
        saved,
        Ledger.from_bytes(checkpoint.ledger),
        _counter(checkpoint, "window"),
        _counter(checkpoint, "committed_samples"),
        cast("dict[str, int]", known_samples),
        cast("dict[str, Any] | None", checkpoint.meta.get("selection")),
    )


def _differences(ours: Manifest, theirs: Manifest, keys: Iterable[str]) -> str:
    """Return in what two runs differ, with both values; empty for nothing."""
    given, saved = _leaves(ours.model_dump(mode="json")), _leaves(theirs.model_dump(mode="json"))
    wanted = tuple(keys)
    return "; ".join(
        f"{name}: {_short(saved.get(name))} in the checkpoint, {_short(given.get(name))} given"
        for name in dict.fromkeys([*given, *saved])
        if given.get(name) != saved.get(name) and any(name == key or name.startswith(f"{key}.") for key in wanted)
    )


def _leaves(document: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return the values of a document and of those in it by their dotted keys."""
    found: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, dict) and value:
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _counter(checkpoint: Checkpoint, key: str) -> int:
    value = checkpoint.meta[key]
    assert isinstance(value, int), "the checkpoint's digest is right, so its counters are what was written"
    return value
