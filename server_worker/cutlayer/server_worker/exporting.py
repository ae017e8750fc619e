"""From a run's output folder to an exported model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutlayer.broker.errors import CheckpointError, SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.export import Exported, export_model, raw_forms
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.model_card import model_card
from cutlayer.server_worker.run_parts import make_engine, make_manifest
from cutlayer.server_worker.settings import load_run_settings

__all__ = ["export_run"]

log = logging.getLogger(__name__)

RUN_FILE = "run.json"


def export_run(
    run_file: Path, overrides: Mapping[str, object], source: Path | None, folder: Path | None, *, with_onnx: bool
) -> Exported:
    """Export the newest checkpoint of a run.

    Args:
        run_file: The run's settings.
        overrides: Values that win over the file's, by dotted key: those that the run was started with.
        source: The worker's output folder; None for runs/<name of the run>.
        folder: Where the model goes; None for `model` in the source folder.
        with_onnx: Whether to write ONNX, too.

    Raises:
        SettingsError: When a setting is wrong, or ONNX cannot be written.
        CheckpointError: When there is no checkpoint, or it is of another model.
    """
    settings = load_run_settings(run_file, overrides)
    source = source or Path("runs") / settings.run.name
    restored = CheckpointStore(source / "checkpoints").load_latest()
    for problem in restored.passed_over:
        log.warning("passed over a damaged checkpoint: %s", problem)
    saved = Manifest.from_bytes(str(restored.checkpoint.meta["manifest"]).encode())
    built = build(settings, settings.run.seed)
    wanted = make_manifest(settings, built)
    for key in ("modalities", "task", "fusion", "width"):
        if getattr(saved, key) != getattr(wanted, key):
            raise CheckpointError(
                str(restored.path), f"it is of a run with other {key}; give the --run and --set of that run"
            )
    try:
        make_engine(settings, built).load_state_dict(restored.checkpoint.state)
    except ValueError as error:
        raise CheckpointError(str(restored.path), f"{error}; give the --run and --set of that run") from error
    known = restored.checkpoint.meta.get("known_samples", {})
    assert isinstance(known, dict)
    counts = {str(agent): int(str(count)) for agent, count in known.items()}
    card = model_card(
        saved, counts, raw_forms(settings.modalities, built.width), _report(source / RUN_FILE, saved.run_id)
    )
    try:
        return export_model(folder or source / "model", settings, built, card, with_onnx=with_onnx)
    except OSError as error:
        raise SettingsError(
            f"--to {folder or source / 'model'}: {error.strerror}", "name a folder that can be written"
        ) from error


def _report(path: Path, run_id: str) -> dict[str, Any] | None:
    """Return run.json, if it is of this run; a run that has not ended has none."""
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if report.get("run_id") == run_id else None
