"""Where a worker starts from: the beginning of a run, or its last checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from cutlayer.broker.errors import CheckpointError
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import Manifest
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointStore
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.rounds import compare_manifests

__all__ = ["Resumed", "resume_from"]

log = logging.getLogger(__name__)


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
        engine.load_candidates(checkpoint.candidates)
    except ValueError as error:
        raise CheckpointError(str(restored.path), f"{error}; give the same [model] and [optimizer]") from error
    window, committed = _counter(checkpoint, "window"), _counter(checkpoint, "committed_samples")
    log.info("resumed %s at window %d from %s", saved.run_id, window, restored.path.name)
    known_samples = checkpoint.meta.get("known_samples", {})
    assert isinstance(known_samples, dict)
    return Resumed(
        saved,
        Ledger.from_bytes(checkpoint.ledger),
        window,
        committed,
        cast("dict[str, int]", known_samples),
        cast("dict[str, Any] | None", checkpoint.meta.get("selection")),
    )


def _counter(checkpoint: Checkpoint, key: str) -> int:
    value = checkpoint.meta[key]
    assert isinstance(value, int), "the checkpoint's digest is right, so its counters are what was written"
    return value
