"""A worker goes on from its checkpoint, or says why it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import JsonValue

from cutlayer.broker.errors import CheckpointError
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.messages import RunPhase
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointStore
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.parameters import EngineState
from cutlayer.server_worker.passes import ForwardItem
from cutlayer.server_worker.resuming import resume_from
from cutlayer.server_worker.run_parts import make_engine, make_manifest, make_session
from cutlayer.server_worker.settings import RunSettings
from support.small_run import small_settings


@pytest.fixture(scope="module")
def settings() -> RunSettings:
    return small_settings()


@pytest.fixture(scope="module")
def built(settings: RunSettings) -> BuiltModel:
    return build(settings, 0)


def checkpoint(settings: RunSettings, built: BuiltModel, **changes: object) -> Checkpoint:
    ledger = Ledger()
    ledger.add("site/0", 0)
    manifest = make_manifest(settings, built, run_id="small-1").model_copy(update=changes)
    meta: dict[str, JsonValue] = {"manifest": manifest.to_bytes().decode(), "window": 5, "committed_samples": 20}
    return Checkpoint(make_engine(settings, built).state_dict(), ledger.to_bytes(), meta)


def test_resumed_run_goes_on_under_its_own_name(settings: RunSettings, built: BuiltModel, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(settings, built))
    resumed = resume_from(store, make_engine(settings, built), make_manifest(settings, built))
    assert (resumed.manifest.run_id, resumed.window, resumed.committed_samples) == ("small-1", 5, 20)
    session = make_session(settings, resumed.manifest, "w0", resumed=resumed, version=5)
    assert (session.phase, session.window, session.version) == (RunPhase.WAITING, 5, 5)
    assert list(session.ledger.of("site/0")) == [(0, 1)]


def test_checkpoint_of_other_settings_is_refused_and_names_what_differs(
    settings: RunSettings, built: BuiltModel, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(settings, built, seed=7, epochs=9))
    with pytest.raises(CheckpointError, match=r"other settings \(seed: 7 in the .*; epochs: 9") as caught:
        resume_from(store, make_engine(settings, built), make_manifest(settings, built))
    assert caught.value.exit_code == 4
    assert "seed: 7 in the checkpoint, 0 given; epochs: 9 in the checkpoint, 2 given" in str(caught.value)
    assert "\n  fix: give the --run, --set" in str(caught.value)


def test_checkpoint_of_another_model_is_refused(built: BuiltModel, tmp_path: Path) -> None:
    options = {"img_size": 4, "patch_size": 2, "in_chans": 1, "embed_dim": 8, "depth": 1, "num_heads": 2}
    other = small_settings(model={"options": options})
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(small_settings(), built))
    rebuilt = build(other, 0)
    with pytest.raises(CheckpointError, match="other settings"):
        resume_from(store, make_engine(other, rebuilt), make_manifest(other, rebuilt))


def test_checkpoint_of_another_optimizer_is_refused(built: BuiltModel, tmp_path: Path) -> None:
    sgd, adamw = small_settings(), small_settings(optimizer={"name": "adamw"})
    worker = make_engine(sgd, built)
    store = CheckpointStore(tmp_path)
    store.save(replace(checkpoint(sgd, built), state=stepped(worker)))
    with pytest.raises(CheckpointError, match=r"\[optimizer\]"):
        resume_from(store, make_engine(adamw, built), make_manifest(adamw, built))


def stepped(engine: Engine) -> EngineState:
    tokens = {name: np.ones((2, 4, 16), np.float32) for name in ("audio", "image")}
    group = engine.forward([ForwardItem("a", "train", tokens)]).group_id
    assert group is not None
    engine.backward(group, {"a": np.ones((2, 3), np.float32)}, last=True)
    engine.commit(2, 0.1)
    return engine.state_dict()
