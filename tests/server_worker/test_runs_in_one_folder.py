"""One output folder, several runs: nothing that was trained is lost, and it is said what is exported."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from pydantic import JsonValue

from cutlayer.broker.errors import BrokerUnreachable, CheckpointError
from cutlayer.broker.ledger import Ledger
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointStore, HeldRun
from cutlayer.server_worker.exporting import export_run
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.namesake import NamesakeLook
from cutlayer.server_worker.run_parts import make_engine, make_manifest
from cutlayer.server_worker.settings import RunSettings, load_run_settings
from cutlayer.simulation.virtual import VirtualNetwork
from support.offline_program import offline_program
from support.processes import DIGITS_FILE, SMALL_DIGITS
from support.small_run import small_dataset, small_settings
from support.virtual_run import Worker, run_until_over

OLD, NEW = "digits-0000aaaa", "digits-1111bbbb"


@pytest.fixture(scope="module")
def settings() -> RunSettings:
    return load_run_settings(DIGITS_FILE, SMALL_DIGITS)


@pytest.fixture(scope="module")
def built(settings: RunSettings) -> BuiltModel:
    return build(settings, 0)


def save(
    folder: Path, settings: RunSettings, built: BuiltModel, run_id: str, *, window: int = 5, committed: int = 1_000
) -> Path:
    meta: dict[str, JsonValue] = {
        "manifest": make_manifest(settings, built, run_id=run_id).to_bytes().decode(),
        "window": window,
        "committed_samples": committed,
        "known_samples": {"site/0": 500},
    }
    state = make_engine(settings, built).state_dict()
    return CheckpointStore(folder / "checkpoints").save(Checkpoint(state, Ledger().to_bytes(), meta))


def runs(folder: Path) -> tuple[HeldRun, ...]:
    return CheckpointStore(folder / "checkpoints").held()


@pytest.fixture
def name_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a program get as far as its run, which has no broker."""
    monkeypatch.setattr(NamesakeLook, "run", lambda *_: None)


def start(folder: Path, *, resume: bool = False) -> None:
    program = offline_program(folder, resume=resume)
    with pytest.raises(BrokerUnreachable):
        program.run(lambda: False)


def export(folder: Path, *, run_id: str = "", may_be_untrained: bool = False) -> str:
    """Export, and return the model card."""
    exported = export_run(
        DIGITS_FILE, SMALL_DIGITS, folder, None, with_onnx=False, run_id=run_id, may_be_untrained=may_be_untrained
    )
    return (exported.folder / "README.md").read_text()


def test_another_run_never_pushes_out_checkpoints(settings: RunSettings, built: BuiltModel, tmp_path: Path) -> None:
    old = [save(tmp_path, settings, built, OLD, window=window) for window in (5, 6, 7)]
    new = [save(tmp_path, settings, built, NEW, window=window) for window in range(4)]
    assert all(path.is_dir() for path in [*old, *new[1:]])
    assert not new[0].exists(), "its own are kept as few as ever"
    assert runs(tmp_path) == (HeldRun(NEW, 3, 1_000), HeldRun(OLD, 7, 1_000))


def test_checkpoint_that_cannot_be_read_is_not_removed(
    settings: RunSettings, built: BuiltModel, tmp_path: Path
) -> None:
    torn = save(tmp_path, settings, built, OLD)
    (torn / "checkpoint.json").write_bytes(b"{")
    for _ in range(4):
        save(tmp_path, settings, built, NEW)
    assert torn.is_dir()


def test_worker_that_is_stopped_before_the_first_window_saves_nothing_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, store = VirtualNetwork(), CheckpointStore(tmp_path)
    worker = Worker(network, small_settings(), store=store)
    network.run(lambda: "cutlayer/run" in network.broker.retained)
    with caplog.at_level(logging.INFO, "cutlayer"):
        worker.runtime.stop()
    assert not list(tmp_path.iterdir())
    assert caplog.messages[-1] == "stopped; no window was committed, so there is nothing to save"


def test_worker_that_is_stopped_says_what_it_has_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network, store = VirtualNetwork(), CheckpointStore(tmp_path)
    worker = Worker(network, small_settings(), store=store)
    network.add_agent("site/0", small_dataset(0, 16))
    network.run(lambda: worker.session.window == 2)
    with caplog.at_level(logging.INFO, "cutlayer"):
        worker.runtime.stop()
    assert "stopped; checkpoint-0000000000 saved, window 2" in caplog.messages


def test_run_that_has_trained_is_the_newest_for_good(tmp_path: Path) -> None:
    network, store = VirtualNetwork(), CheckpointStore(tmp_path)
    worker = Worker(network, small_settings(), store=store, every_windows=3)
    run_until_over(network, worker, [network.add_agent("site/0", small_dataset(0, 16))])
    assert [(run.run_id, run.window) for run in store.held()] == [("small-0", 8)]


@pytest.mark.usefixtures("name_is_free")
def test_start_over_another_runs_checkpoints_says_what_becomes_of_them(
    settings: RunSettings, built: BuiltModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, settings, built, OLD, window=7)
    (tmp_path / "run.json").write_text(json.dumps({"run_id": OLD}))
    with caplog.at_level(logging.INFO, "cutlayer"):
        start(tmp_path)
    told = next(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert f"checkpoints of run {OLD}, up to window 7: they stay" in told
    assert all(flag in told for flag in ("--resume", "--output", f"--run-id {OLD}"))
    assert f"kept run.json of the run before as {tmp_path / f'run-{OLD}.json'}" in caplog.messages
    assert [run.run_id for run in runs(tmp_path)] == [OLD]


@pytest.mark.usefixtures("name_is_free")
def test_start_that_goes_on_with_a_run_has_nothing_to_say_of_it(
    settings: RunSettings, built: BuiltModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, settings, built, OLD)
    with caplog.at_level(logging.INFO, "cutlayer"):
        start(tmp_path, resume=True)
    assert not any("they stay" in message for message in caplog.messages)


def test_export_names_run_window_and_epoch(
    settings: RunSettings, built: BuiltModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path, settings, built, OLD, window=7, committed=750)
    with caplog.at_level(logging.INFO, "cutlayer"):
        export(tmp_path)
    epochs = settings.run.epochs
    assert f"exporting run {OLD}, window 7, 1.5 of {epochs} epochs, from {path}" in caplog.messages


def test_export_of_what_is_not_trained_is_refused_with_the_fix(
    settings: RunSettings, built: BuiltModel, tmp_path: Path
) -> None:
    save(tmp_path, settings, built, OLD, window=0, committed=0)
    with pytest.raises(CheckpointError, match=f"nothing of run {OLD} is trained yet") as caught:
        export(tmp_path)
    assert caught.value.exit_code == 4
    assert "\n  fix: " in str(caught.value)
    assert "--allow-untrained" in str(caught.value)
    assert not (tmp_path / "model").exists()
    assert export(tmp_path, may_be_untrained=True).startswith(f"# {OLD}")


def test_export_says_which_of_several_runs_it_takes_and_how_to_have_another(
    settings: RunSettings, built: BuiltModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, settings, built, OLD, window=7)
    save(tmp_path, settings, built, NEW, window=1)
    with caplog.at_level(logging.INFO, "cutlayer"):
        assert export(tmp_path).startswith(f"# {NEW}")
    assert any(f"run {OLD}, too, up to window 7" in text and f"--run-id {OLD}" in text for text in caplog.messages)
    assert export(tmp_path, run_id=OLD).startswith(f"# {OLD}")
    with pytest.raises(CheckpointError, match=f"no checkpoint of run digits-2, but of {NEW}, {OLD}"):
        export(tmp_path, run_id="digits-2")


def test_export_says_that_the_last_record_is_of_a_run_without_checkpoints(
    settings: RunSettings, built: BuiltModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, settings, built, OLD)
    (tmp_path / "run.json").write_text(json.dumps({"run_id": NEW}))
    with caplog.at_level(logging.INFO, "cutlayer"):
        export(tmp_path)
    assert f"{tmp_path / 'run.json'} is of run {NEW}, which has no checkpoint here" in caplog.messages


def test_card_has_the_figures_of_a_record_that_was_put_aside(
    settings: RunSettings, built: BuiltModel, tmp_path: Path
) -> None:
    save(tmp_path, settings, built, OLD)
    record = {"run_id": OLD, "metrics": {"joint": {"accuracy": 0.5}}, "training_s": 3.0}
    record["bytes"] = {"up": {"wire": 1}, "down": {"wire": 1}}
    (tmp_path / f"run-{OLD}.json").write_text(json.dumps(record))
    assert "50.0%" in export(tmp_path)
