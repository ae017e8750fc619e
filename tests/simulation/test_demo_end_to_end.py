"""The demo as a person starts it: real worker, real agents, real broker, small data."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutlayer.simulation.demo_processes import console_script
from support.waiting import LIMIT_S, until

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SMALL = ("--agents", "2", "--data-option", "views=1", "--data-option", "test_views=1")
TIMEOUT_S = 500.0


def demo_command(output: Path, *arguments: str) -> list[str]:
    run_file = REPOSITORY / "examples" / "digits.toml"
    return [
        str(console_script("cutlayer")),
        "demo",
        "--run",
        str(run_file),
        "--output",
        str(output),
        *SMALL,
        *arguments,
    ]


def processes_of(output: Path) -> list[str]:
    """Return the command lines of running processes that name a folder, such as the demo's worker, or a broker's."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                logs = (entry / "fd" / "1").readlink()
            except OSError:
                continue
            if str(output) in command or str(output) in str(logs):
                found.append(command)
    return found


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    output = tmp_path / "runs"
    yield output
    until(lambda: not processes_of(output), "end of what the demo has started")


def test_demo_trains_and_its_last_line_is_the_record(output: Path) -> None:
    done = subprocess.run(
        demo_command(output, "--epochs", "1", "--no-live", "--seed", "3"),
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    path = output / "demo" / "run.json"
    assert done.stdout.splitlines()[-1] == str(path)
    assert "training" in done.stdout
    page = re.search(r"^live page at (http://127\.0\.0\.1:\d+/)$", done.stdout, re.MULTILINE)
    assert page, done.stdout
    assert f"live page at {page[1]}, " in (path.parent / "logs" / "worker-0.log").read_text(encoding="utf-8")
    run = json.loads(path.read_text(encoding="utf-8"))
    assert set(run["accuracy"]) == {"joint", "audio", "image"}
    for direction in ("up", "down"):
        moved = run["bytes"][direction]
        assert 0 < moved["payload"] < moved["wire"]
    assert run["bytes"]["up"]["raw"] > 3 * run["bytes"]["up"]["wire"]
    assert run["samples"] == 1_437  # every train scan, once
    assert run["steps"] >= 45
    assert run["windows"] > 0
    assert run["duration_s"] > 0
    assert 0 < run["round_trip_s"]["p50"] <= run["round_trip_s"]["p95"]
    assert run["seed"] == 3
    assert {"python", "torch", "timm", "numpy"} <= set(run["versions"])
    assert [(process["role"], process["id"]) for process in run["processes"]] == [
        ("worker", "worker-0"),
        ("agent", "clinic/00"),
        ("agent", "clinic/01"),
        ("broker", "amqtt"),
    ]
    assert all(process["peak_rss_bytes"] > 0 and process["cpu_s"] > 0 for process in run["processes"])
    report = (path.parent / "report.html").read_text(encoding="utf-8")
    assert run["run_id"] in report


@pytest.mark.mosquitto
def test_quiet_demo_over_mosquitto_prints_the_record_alone(output: Path) -> None:
    done = subprocess.run(
        demo_command(
            output, "--epochs", "1", "--quiet", "--broker", "mosquitto", "--mode", "synchronous", "--codec", "identity"
        ),
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    path = output / "demo" / "run.json"
    assert done.stdout == f"{path}\n"
    run = json.loads(path.read_text(encoding="utf-8"))
    assert run["manifest"]["window"]["mode"] == "synchronous"
    assert {name.partition("+")[0] for name in run["manifest"]["codecs"].values()} == {"identity"}
    assert run["processes"][-1]["id"] == "mosquitto"


def test_ctrl_c_in_the_live_view_ends_everything(output: Path) -> None:
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "90", "LINES": "30"}
    with subprocess.Popen(
        demo_command(output, "--epochs", "50"), stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as demo:
        os.close(theirs)
        seen = ""
        is_pressed = False
        while text := read_terminal(ours):
            seen += text
            if not is_pressed and "training" in seen and "clinic/01" in seen:
                is_pressed = True
                demo.send_signal(signal.SIGINT)
    os.close(ours)
    assert demo.returncode == 130
    assert seen.count("live page at http://127.0.0.1:") == 1
    assert "stopping everything" in seen
    assert "Traceback" not in seen


def read_terminal(terminal: int) -> str:
    try:
        return os.read(terminal, 65_536).decode(errors="replace")
    except OSError:  # it closes with its last process
        return ""


def test_demo_that_is_killed_leaves_nothing_behind(output: Path) -> None:
    with subprocess.Popen(demo_command(output, "--epochs", "50", "--no-live"), stdout=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        assert any(b"training" in line for line in demo.stdout)
        assert len(processes_of(output)) >= 4
        demo.send_signal(signal.SIGKILL)
    assert demo.returncode == -signal.SIGKILL


def test_agent_that_is_killed_ends_the_demo_and_is_named(output: Path) -> None:
    with subprocess.Popen(
        demo_command(output, "--epochs", "50", "--no-live"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        assert any("training" in line for line in demo.stdout)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _is_agent(entry, output):
                os.kill(int(entry.name), signal.SIGKILL)
                break
        _, printed = demo.communicate(timeout=LIMIT_S)
    assert demo.returncode == 1
    assert "was killed by SIGKILL before the run had ended" in printed
    assert "clinic/" in printed
    assert "Traceback" not in printed


def _is_agent(entry: Path, output: Path) -> bool:
    try:
        is_of_this_demo = str(output) in str((entry / "fd" / "1").readlink())
        return is_of_this_demo and b"edge-agent" in (entry / "cmdline").read_bytes()
    except OSError:
        return False


def test_settings_that_the_worker_refuses_are_shown(output: Path) -> None:
    done = subprocess.run(
        demo_command(output, "--no-live", "--set", "optimizer.lr=fast"),
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "worker-0 ended with exit code 2" in done.stderr
    assert "[optimizer] lr = 'fast' is refused" in done.stderr
