"""`edge-agent evaluate` and `edge-agent predict` as a person meets them: wrong flags, nobody there."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutlayer.broker.launcher import BrokerProcess
from cutlayer.edge_agent import cli
from support.brokers import running_broker

NOBODY = ["--broker", "mqtt://127.0.0.1:1", "--connect-timeout", "0.1"]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("cutlayer")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    with running_broker("amqtt") as running:
        yield running


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["edge-agent", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize(
    ("flags", "problem", "fix"),
    [
        (["--split", "rest"], "--split 'rest' is unknown", "choose train, val, test or all"),
        (["--data", "nowhere"], "there is no such file or folder", "check the path"),
        (["--shard", "3"], "3", "0/4"),
        (["--topic", "up"], "topic 'up' cannot be an agent's", "such as clinic/07"),
        (["--max-uplink", "much"], "--max-uplink", "5mbit"),
    ],
)
def test_wrong_flag_is_one_message_that_names_it_and_the_fix(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    flags: list[str],
    problem: str,
    fix: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [command, "--topic", "clinic/07", "--data", "demo:digits", *NOBODY, *flags]
    assert run(monkeypatch, *words) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert fix in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("predict", ["--output", "out.xlsx"]),
        ("predict", ["--output", "no/out.csv"]),
        ("evaluate", ["--json", "no/m.json"]),
    ],
)
def test_a_file_that_cannot_be_written_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, flags: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, command, "--topic", "clinic/07", "--data", "demo:digits", *NOBODY, *flags) == 2
    assert flags[0] in capsys.readouterr().err


def test_no_broker_is_said_as_always(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "predict", "--topic", "clinic/07", "--data", "demo:digits", *NOBODY) == 3
    assert "no broker at mqtt://127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_no_run_on_the_broker_is_said_with_what_to_start(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    broker: BrokerProcess,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [command, "--topic", f"clinic/{command}", "--data", "demo:digits", "--broker", broker.url]
    assert run(monkeypatch, *words, "--worker-timeout", "0.5") == 4
    said = capsys.readouterr().err
    assert "no run is announced on this broker" in said
    assert "server-worker serve" in said
    assert not list(tmp_path.iterdir())


def test_help_says_what_leaves_the_site(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command, text in (("evaluate", "labels stay here"), ("predict", "need no labels")):
        assert run(monkeypatch, command, "--help") == 0
        assert text in " ".join(capsys.readouterr().out.split())
