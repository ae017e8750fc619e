"""The `cutlayer doctor` command as a process."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.brokers import running_broker
from support.processes import script
from support.waiting import LIMIT_S

pytestmark = pytest.mark.judges_by_silence


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script("cutlayer"), "doctor", "--timeout", "2", *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_broker("amqtt") as broker:
        yield broker.url


def test_help_teaches() -> None:
    words = " ".join(doctor("--help").stdout.split())
    for text in ("cutlayer doctor --broker mqtt://hub --topic clinic/07", "--json", "--ca-file", "Exit codes"):
        assert text in words


def test_a_visit_prints_a_line_a_check_and_warnings_exit_with_0(url: str) -> None:
    done = doctor("--broker", url, "--topic", "clinic/07")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok       name ")
    assert "warnings" in lines[-1]
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_broker_and_topic_may_come_from_the_environment(url: str) -> None:
    done = doctor("--json", CUTLAYER_BROKER=url, CUTLAYER_TOPIC="clinic/08")
    assert (json.loads(done.stdout)["broker"], json.loads(done.stdout)["topic"]) == (url, "clinic/08")


def test_json_is_all_that_is_printed(url: str) -> None:
    done = doctor("--broker", url, "--topic", "clinic/07", "--json")
    document = json.loads(done.stdout)
    assert document["exit_code"] == done.returncode == 0
    assert {entry["check"] for entry in document["findings"]} >= {"name", "port", "rights", "up", "manifest"}


def test_quiet_prints_warnings_and_problems_only(url: str) -> None:
    done = doctor("--broker", url, "--topic", "clinic/07", "--quiet")
    firsts = {line.split()[0] for line in done.stdout.splitlines()}
    assert firsts == {"warning", "fix:"}


def test_a_problem_exits_with_the_code_that_an_agent_would() -> None:
    done = doctor("--broker", "mqtt://no-such-host.invalid", "--topic", "clinic/07")
    assert done.returncode == 3
    assert "problem  name" in done.stdout
    assert "fix: " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--broker", "http://hub"], "is not mqtt:// or mqtts://"),
        (["--topic", "up/07"], "cannot be an agent's"),
        (["--broker", "mqtts://hub", "--ca-file", "/missing.pem"], "ca_file /missing.pem cannot be read"),
        (["--password-file", "/missing"], "password_file /missing cannot be read"),
    ],
)
def test_a_wrong_flag_exits_with_2_before_anything_is_looked_at(arguments: list[str], says: str) -> None:
    done = doctor(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "fix: " in done.stderr
    assert done.stdout == ""


def test_on_a_terminal_what_is_being_done_is_shown_while_it_lasts(url: str) -> None:
    command = [script("cutlayer"), "doctor", "--broker", url, "--topic", "clinic/07"]
    reader, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(reader, 65_536):
                shown += piece
        except OSError:  # how Linux says that the last one has closed the terminal
            pass
        os.close(reader)
    assert process.returncode == 0
    assert b"trying the rights of this user" in shown
    assert b"\x1b[32mok" in shown


def test_the_command_loads_neither_torch_nor_the_servers_half(tmp_path: Path) -> None:
    code = (
        "import sys, cutlayer.simulation.doctor\n"
        "print(sorted({'torch', 'timm', 'matplotlib', 'amqtt', 'cutlayer.server_worker'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
