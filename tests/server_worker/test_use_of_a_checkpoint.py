"""`serve` and `export` ask the same of a checkpoint: its model, not how it was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue

from cutlayer.broker.errors import CheckpointError
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointStore
from cutlayer.server_worker.exporting import export_run
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_parts import make_engine, make_manifest, make_session
from cutlayer.server_worker.saver import Saver
from cutlayer.server_worker.settings import load_run_settings
from support.offline_program import offline_program
from support.processes import DIGITS_FILE, SMALL_DIGITS

RUN: dict[str, object] = {**SMALL_DIGITS, "run.seed": 3}
Use = Callable[[Path, dict[str, object]], None]


def serve(folder: Path, overrides: dict[str, object]) -> None:
    program = offline_program(folder, overrides, only_visits=True)
    program._http.close()


def export(folder: Path, overrides: dict[str, object]) -> None:
    export_run(DIGITS_FILE, overrides, folder, folder.parent / "model", with_onnx=False)


USES = pytest.mark.parametrize("use", [serve, export])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of a run whose optimizer has made steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = load_run_settings(DIGITS_FILE, RUN)
    built = build(settings, 3)
    engine, manifest = make_engine(settings, built), make_manifest(settings, built, run_id="digits-0000aaaa")
    for parameter in built.encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    engine._parameters._optimizer.step()
    session = make_session(settings, manifest, "w0")
    store = CheckpointStore(folder / "checkpoints")
    saved = Saver(store, session, engine, 1, lambda _: None).snapshot()
    meta: dict[str, JsonValue] = {**saved.meta, "window": 5, "committed_samples": 640, "known_samples": {"site/0": 320}}
    store.save(Checkpoint(saved.state, saved.ledger, meta))
    assert saved.state.optimizer
    return folder


@USES
@pytest.mark.parametrize(
    "changes",
    [
        {"run.epochs": 30},
        {"optimizer.lr": 1e-3, "optimizer.name": "sgd"},
        {"window.samples": 8, "window.mode": "synchronous"},
        {"codecs.activations": "identity", "activations.mode": "every-step"},
        {"evaluation.every_epochs": 3, "telemetry_s": 5.0, "run.microbatch_samples": 7},
    ],
    ids=["epochs", "optimizer", "window", "codecs", "the rest"],
)
def test_how_it_was_trained_does_not_matter(trained: Path, use: Use, changes: dict[str, object]) -> None:
    use(trained, {**RUN, **changes})


@USES
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model.fusion": "late"}, "fusion: early in the checkpoint, late given"),
        ({"modalities.image.mean": 0.25}, "modalities.image.mean: "),
        ({"tuning.mode": "lora"}, "tuning.mode: full in the checkpoint, lora given"),
        ({"run.seed": 0}, "seed: 3 in the checkpoint, 0 given; tokenizers.digest: "),
        ({"model.options.depth": 2}, "num_parameters: "),
    ],
    ids=["fusion", "modalities", "tuning", "seed", "options"],
)
def test_another_model_is_refused_with_both_values(
    trained: Path, use: Use, changes: dict[str, object], text: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        use(trained, {**RUN, **changes})
    told = str(caught.value)
    assert caught.value.exit_code == 4
    assert told.startswith(f"cannot {use.__name__} {trained}/checkpoints/checkpoint-0000000000: it is of another model")
    assert text in told
    assert "\n  fix: give the --run of that run, and with --set what it was started with" in told


@USES
def test_no_checkpoint_is_told_in_the_commands_own_word_with_the_fix(tmp_path: Path, use: Use) -> None:
    with pytest.raises(CheckpointError) as caught:
        use(tmp_path / "run", dict(RUN))
    told = str(caught.value)
    assert told.startswith(
        f"cannot {use.__name__} {tmp_path}/run/checkpoints: there is no checkpoint\n  fix: train first"
    )
    assert "--from" in told
