from __future__ import annotations

import json
import re
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import JsonValue

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.errors import BrokerUnreachable, CheckpointError, SettingsError
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import RunPhase
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointStore
from cutlayer.server_worker.engine import Engine, EngineState, ForwardItem
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.program import Program, write_json
from cutlayer.server_worker.resuming import resume_from
from cutlayer.server_worker.run_parts import check_codecs, make_engine, make_manifest, make_session
from cutlayer.server_worker.settings import RunSettings
from support.processes import DIGITS_FILE, SMALL_DIGITS, digits_settings
from support.small_run import small_settings


@pytest.fixture(scope="module")
def settings() -> RunSettings:
    return small_settings()


@pytest.fixture(scope="module")
def built(settings: RunSettings) -> BuiltModel:
    return build(settings, 0)


def program(
    tmp_path: Path,
    *,
    output: Path | None = None,
    resume: bool = False,
    http_port: int = 0,
    name: str = "w0",
    **overrides: object,
) -> Program:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return Program(
        DIGITS_FILE,
        SMALL_DIGITS | dotted,
        name=name,
        broker=BrokerSettings(url="mqtt://127.0.0.1:1"),
        output=output or tmp_path / "run",
        resume=resume,
        pool=None,
        http_host="127.0.0.1",
        http_port=http_port,
        connect_timeout_s=0.1,
    )


def test_manifest_says_what_the_settings_and_the_model_are(settings: RunSettings, built: BuiltModel) -> None:
    manifest = make_manifest(settings, built)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert manifest.num_parameters == sum(weights.numel() for weights in built.encoder.parameters())
    assert manifest.modalities == dict(settings.modalities)
    assert (manifest.seed, manifest.epochs, manifest.microbatch_samples) == (0, 2, 4)
    assert manifest.run_id.startswith("small-")


def test_each_run_has_a_name_of_its_own_whatever_it_is_called(built: BuiltModel) -> None:
    settings = small_settings(run={"name": "n" * 64})
    names = {make_manifest(settings, built).run_id for _ in range(20)}
    assert len(names) == 20


def test_unknown_codec_is_named_with_its_key() -> None:
    with pytest.raises(SettingsError, match=r"\[codecs\] outputs = 'fp8'"):
        check_codecs(small_settings(codecs={"outputs": "fp8"}))


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
    with pytest.raises(CheckpointError, match=r"other settings \(seed, epochs\)") as caught:
        resume_from(store, make_engine(settings, built), make_manifest(settings, built))
    assert caught.value.exit_code == 4


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


def test_nothing_to_resume_from_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run/checkpoints: there is no checkpoint"):
        program(tmp_path, resume=True)


def test_port_that_is_taken_is_told_before_the_run(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingsError, match=r"HTTP port \d+ of 127.0.0.1 cannot be used"):
            program(tmp_path, http_port=taken.getsockname()[1])


def test_output_that_cannot_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SettingsError, match=r"output folder .*/file/run cannot be written") as caught:
        program(tmp_path, output=tmp_path / "file" / "run")
    assert "--output" in caught.value.fix


def test_worker_name_that_is_no_topic_level_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="worker name 'a/b'"):
        program(tmp_path, name="a/b")


def test_no_broker_leaves_no_run_json_and_no_open_port(tmp_path: Path) -> None:
    worker = program(tmp_path)
    port = worker._http.port
    with pytest.raises(BrokerUnreachable):
        worker.run(lambda: False)
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_health_tells_what_the_worker_does(tmp_path: Path) -> None:
    worker = program(tmp_path)
    is_healthy, facts = worker._health()
    worker._http.close()
    assert not is_healthy
    assert facts == {
        "connected": False,
        "run": worker.session.manifest.run_id,
        "phase": "waiting",
        "agents": 0,
        "window": 0,
    }
    json.dumps(facts)


def test_the_port_serves_the_worker_metrics_and_those_of_its_agents(tmp_path: Path) -> None:
    worker = program(tmp_path)
    texts = {}
    for path in ("/metrics", "/metrics/clients?top=3"):
        with urllib.request.urlopen(f"http://127.0.0.1:{worker._http.port}{path}", timeout=10) as answer:
            texts[path] = answer.read().decode()
    worker._http.close()
    budget = next(line for line in texts["/metrics"].splitlines() if line.startswith("cutlayer_broker_budget_bytes"))
    assert float(budget.split()[1]) > 0
    assert re.search(r"^cutlayer_agent_budget_bytes [1-9]", texts["/metrics"], re.MULTILINE)
    assert 'cutlayer_agent_steps_total{agent="other"} 0.0' in texts["/metrics/clients?top=3"]


def test_json_is_written_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    write_json(path, {"first": 1})
    write_json(path, {"second": 2})
    assert json.loads(path.read_text()) == {"second": 2}
    assert [each.name for each in path.parent.iterdir()] == ["run.json"]


def test_settings_of_the_example_are_good() -> None:
    settings = digits_settings()
    check_codecs(settings)
    assert settings.run.name == "digits"
