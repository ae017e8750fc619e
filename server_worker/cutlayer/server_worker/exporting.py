"""From a run's output folder to an exported model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from cutlayer.broker.errors import CheckpointError, SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.server_worker.checkpoint import CheckpointStore, HeldRun, RestoredCheckpoint
from cutlayer.server_worker.export import Exported, export_model, raw_forms
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.model_card import model_card
from cutlayer.server_worker.resuming import load_trained
from cutlayer.server_worker.run_parts import make_engine, make_manifest
from cutlayer.server_worker.settings import load_run_settings

__all__ = ["export_run"]

log = logging.getLogger(__name__)

RUN_FILE = "run.json"


def export_run(
    run_file: Path,
    overrides: Mapping[str, object],
    source: Path | None,
    folder: Path | None,
    *,
    with_onnx: bool,
    run_id: str = "",
    may_be_untrained: bool = False,
) -> Exported:
    """Export the newest checkpoint of a run.

    Args:
        run_file: The run's settings.
        overrides: Values that win over the file's, by dotted key: those that the run was started with.
        source: The worker's output folder; None for runs/<name of the run>.
        folder: Where the model goes; None for `model` in the source folder.
        with_onnx: Whether to write ONNX, too.
        run_id: The run, where the folder holds checkpoints of several; empty for the one with the newest.
        may_be_untrained: Whether a model of which nothing is trained yet is exported, too.

    Raises:
        SettingsError: When a setting is wrong, or ONNX cannot be written.
        CheckpointError: When there is no checkpoint, it is of another model, or nothing is trained.
    """
    settings = load_run_settings(run_file, overrides)
    source = source or Path("runs") / settings.run.name
    store = CheckpointStore(source / "checkpoints", run_id=run_id)
    built = build(settings, settings.run.seed)

    def check(saved: Manifest, restored: RestoredCheckpoint) -> None:
        _tell_what(saved, restored, source, store.held())
        if not may_be_untrained:
            _require_trained(saved, restored)

    resumed, _ = load_trained(store, make_engine(settings, built), make_manifest(settings, built), "export", check)
    saved, counts = resumed.manifest, resumed.known_samples
    card = model_card(saved, counts, raw_forms(settings.modalities, built.width), _report(source, saved.run_id))
    try:
        return export_model(folder or source / "model", settings, built, card, with_onnx=with_onnx)
    except OSError as error:
        raise SettingsError(
            f"--to {folder or source / 'model'}: {error.strerror}", "name a folder that can be written"
        ) from error


def _require_trained(saved: Manifest, restored: RestoredCheckpoint) -> None:
    if not restored.checkpoint.meta.get("committed_samples"):
        raise CheckpointError(
            str(restored.path),
            f"nothing of run {saved.run_id} is trained yet: its weights are those that it began with",
            doing="export",
            fix="train first (server-worker start), name another run with --run-id or --from, or give "
            "--allow-untrained to export these weights",
        )


def _tell_what(saved: Manifest, restored: RestoredCheckpoint, source: Path, held: Sequence[HeldRun]) -> None:
    """Say which weights these are, and which others there are in the folder."""
    meta = restored.checkpoint.meta
    log.info(
        "exporting run %s, window %s, %s, from %s",
        saved.run_id,
        meta.get("window"),
        _epochs(saved, meta),
        restored.path,
    )
    for other in held:
        if other.run_id != saved.run_id:
            log.warning(
                "%s holds run %s, too, up to window %d, which is not exported: --run-id %s takes it",
                restored.path.parent,
                other.run_id,
                other.window,
                other.run_id,
            )
    last = _record(source / RUN_FILE).get("run_id", saved.run_id)
    if last != saved.run_id and last not in {other.run_id for other in held}:
        log.warning("%s is of run %s, which has no checkpoint here", source / RUN_FILE, last)


def _epochs(saved: Manifest, meta: Mapping[str, JsonValue]) -> str:
    selection, known, committed = meta.get("selection"), meta.get("known_samples"), meta.get("committed_samples")
    kept = selection.get("kept_epoch") if isinstance(selection, dict) else None
    if kept is not None:
        return f"weights of epoch {kept}, the best"
    of_epoch = sum(int(str(count)) for count in known.values()) if isinstance(known, dict) else 0
    done = int(str(committed or 0)) / of_epoch if of_epoch else 0.0
    return f"{done:.1f} of {saved.epochs} epochs"


def _report(source: Path, run_id: str) -> dict[str, Any] | None:
    """Return the run's record; a run that has not ended has none, and a later one in the folder puts it aside."""
    for path in (source / RUN_FILE, source / f"run-{run_id}.json"):
        report = _record(path)
        if report.get("run_id") == run_id:
            return report
    return None


def _record(path: Path) -> dict[str, Any]:
    """Return a record, empty where there is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}
