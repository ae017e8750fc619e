"""`server-worker` as a person meets it: help, wrong flags and settings, no broker, a taken port."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from cutlayer.server_worker import cli
from cutlayer.server_worker.timm_import import create_model
from support.processes import DIGITS_FILE, script
from support.waiting import LIMIT_S

GOOD = ["start", "--run", str(DIGITS_FILE), "--broker", "mqtt://127.0.0.1:1", "--connect-timeout", "0.1"]
SMALL = ["--set", "model.options.embed_dim=16", "--set", "model.options.depth=1", "--http-port", "0"]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("cutlayer")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in a folder of the test's own: the default output is below the present one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["server-worker", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


TOMLS = {
    "no TOML": ("[run\n", "is no TOML", "mend that line"),
    "an unknown key": (
        DIGITS_FILE.read_text().replace("[optimizer]", "[optimizer]\nmomentun = 0.9"),
        "unknown key [optimizer] momentun",
        "momentum?",
    ),
    "an unknown section": (DIGITS_FILE.read_text() + "\n[oven]\nheat = 3\n", "unknown key [oven]", "known here"),
    "a missing section": ("[task]\nclasses = ['a', 'b']\n", "[modalities] is missing", "add"),
    "a value out of its limits": (
        re.sub(r"(?m)^epochs = .*", "epochs = 0", DIGITS_FILE.read_text()),
        "[run] epochs = 0",
        "greater than 0",
    ),
}


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("toml", "text", "fix"), TOMLS.values(), ids=TOMLS)
def test_wrong_settings_file_is_one_message_that_names_file_key_and_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, toml: str, text: str, fix: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(toml)
    assert exit_code(monkeypatch, "start", "--run", str(path)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"server-worker: {'settings file ' if 'no TOML' in text else ''}{path}")
    assert text in printed
    assert fix in printed
    assert "Traceback" not in printed


WRONG: dict[str, tuple[list[str], str]] = {
    "no such file": (["start", "--run", "missing.toml"], "no settings file missing.toml"),
    "a folder": (["start", "--run", "/"], "settings file / cannot be read"),
    "an unknown codec": ([*GOOD, "--set", "codecs.activations=int3"], "[codecs] activations = 'int3'"),
    "an unknown byte stage": ([*GOOD, "--set", "codecs.outputs=fp16+rar"], "[codecs] outputs = 'fp16+rar'"),
    "an unknown setting": ([*GOOD, "--set", "window.sample=3"], "unknown key [window] sample"),
    "a setting of another type": ([*GOOD, "--set", "window.samples=many"], "[window] samples = 'many'"),
    "a setting without a section": ([*GOOD, "--set", "samples=3"], "did you mean [window] samples?"),
    "a setting without a key": ([*GOOD, "--set", "=3"], "--set '=3'"),
    "a setting without a value": ([*GOOD, "--set", "window.samples"], "--set 'window.samples'"),
    "an unknown model": ([*GOOD, *SMALL, "--set", "model.name=vit_gigantic_9000"], "vit_gigantic_9000"),
    "missing weights": ([*GOOD, *SMALL, "--set", "model.weights=none.safetensors"], "none.safetensors"),
    "weights that are not there": ([*GOOD, *SMALL, "--weights", "none.safetensors"], "none.safetensors': no such file"),
    "weights and a download": (
        [*GOOD, *SMALL, "--weights", "a.pth", "--set", "model.pretrained=true"],
        "pretrained and weights are both set",
    ),
    "more blocks than there are": (
        [*GOOD, *SMALL, "--set", "tuning.mode=last", "--set", "tuning.blocks=2"],
        "[tuning] blocks = 2, and the encoder has 1",
    ),
    "a rank without a mode": ([*GOOD, *SMALL, "--set", "tuning.rank=4"], "[tuning]: rank without a mode"),
    "an unknown mode of tuning": ([*GOOD, *SMALL, "--set", "tuning.mode=some"], "[tuning] mode = 'some'"),
    "a bad worker name": ([*GOOD, "--name", "a/b"], "worker name 'a/b'"),
    "no MQTT address": ([*GOOD, "--broker", "hub"], "hub"),
    "an unknown log format": ([*GOOD, "--log-format", "xml"], "--log-format 'xml'"),
    "an output that is no folder": ([*GOOD, *SMALL, "--output", "/dev/null/run"], "output folder /dev/null/run"),
}


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("arguments", "text"), WRONG.values(), ids=WRONG)
def test_wrong_flag_is_one_message_that_names_it_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert exit_code(monkeypatch, *arguments) == 2
    printed = capsys.readouterr().err
    assert text in printed
    assert "\n  fix: " in printed
    assert "Traceback" not in printed


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["start"], "--run"),
        ([*GOOD, "--speed", "9"], "--speed"),
        ([*GOOD, "--http-port", "70000"], "--http-port"),
        ([*GOOD, "--epochs", "0"], "--epochs"),
        ([*GOOD, "--min-agents", "none"], "--min-agents"),
    ],
    ids=["no settings", "unknown flag", "no port", "no epoch", "no number"],
)
def test_flag_that_is_missing_or_unknown_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert exit_code(monkeypatch, *arguments) == 2
    printed = capsys.readouterr().err
    assert text in printed
    assert "Traceback" not in printed


@pytest.mark.usefixtures("elsewhere")
def test_http_port_that_is_taken_is_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert exit_code(monkeypatch, *GOOD, *SMALL[:-1], str(port)) == 2
    printed = capsys.readouterr().err
    assert f"HTTP port {port} of 127.0.0.1 cannot be used: Address already in use" in printed
    assert "--http-port" in printed


@pytest.mark.usefixtures("elsewhere")
def test_no_broker_at_the_port_is_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, *GOOD[:-1], "3", *SMALL) == 3
    printed = capsys.readouterr().err
    assert "server-worker: no broker at mqtt://127.0.0.1:1: no connection within 3 s (Connection refused)\n" in printed
    assert "fix: start one" in printed
    assert "Traceback" not in printed


@pytest.mark.usefixtures("elsewhere")
def test_nothing_to_resume_from_exits_with_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, *GOOD, *SMALL, "--resume") == 4
    printed = capsys.readouterr().err
    assert (
        "cannot resume from runs/digits/checkpoints: there is no checkpoint\n  fix: start without --resume" in printed
    )


def test_help_teaches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert exit_code(monkeypatch, "start", "--help") == 0
    printed = capsys.readouterr().out
    for word in ("Examples", "--run", "--resume", "--set", "CUTLAYER_BROKER", "Exit codes", "130"):
        assert word in printed


def test_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("cutlayer 0.")


@pytest.mark.usefixtures("elsewhere")
def test_weights_of_the_flag_win_over_a_download_and_are_found_from_where_it_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "settings" / "run.toml"
    run.parent.mkdir()
    run.write_text(DIGITS_FILE.read_text().replace("[model]", "[model]\npretrained = true"))
    options: dict[str, Any] = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 1}
    options["num_heads"] = 4
    weights = create_model("vit_tiny_patch16_224", **options).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "vit.safetensors")
    arguments = ["start", "--run", str(run), *GOOD[3:], *SMALL, "--weights", "vit.safetensors"]
    assert exit_code(monkeypatch, *arguments) == 3  # all is well but the broker
    (tmp_path / "vit.safetensors").write_bytes(b"torn")
    assert exit_code(monkeypatch, *arguments) == 2
    assert "vit.safetensors' cannot be loaded into vit_tiny_patch16_224" in capsys.readouterr().err


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("flags", "is_printed"), [([], True), (["--quiet"], False), (["--log-format", "json"], False)])
def test_what_is_tuned_sent_and_inferable_is_said_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], is_printed: bool
) -> None:
    assert exit_code(monkeypatch, *GOOD, *SMALL, "--set", "tuning.mode=lora", *flags) == 3
    printed = capsys.readouterr().out
    for text in ("lora: ", "activations of image", "The server can infer", "What stays at a site"):
        assert (text in printed) is is_printed


@pytest.mark.slow
def test_weights_that_cannot_be_downloaded_are_explained(tmp_path: Path) -> None:
    command = [script("server-worker"), *GOOD, "--http-port", "0", "--set", "model.pretrained=true"]
    command += ["--output", str(tmp_path)]
    done = subprocess.run(
        command,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 2
    assert "[model] pretrained: the weights of vit_tiny_patch16_224 cannot be had" in done.stderr
    assert "fix: check the network, give a downloaded file with --weights FILE" in done.stderr
    assert "Traceback" not in done.stderr
