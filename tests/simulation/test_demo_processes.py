import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cutlayer.broker.command_line import GracefulStop
from cutlayer.broker.errors import SettingsError
from cutlayer.simulation.demo_processes import Children, Command, ProcessDied, console_script, last_lines, usage_of
from support.waiting import LIMIT_S, ends, until

SLEEPS = "import time; time.sleep(600)"
PRINTS_AND_SLEEPS = "import time; print('ready', flush=True); time.sleep(600)"
IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))
print('ready', flush=True)
while True:
    time.sleep(600)
"""
ENDS_ON_SIGTERM = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print('goodbye', flush=True), sys.exit(0)))
print('ready', flush=True)
time.sleep(600)
"""


def command(name: str, code: str) -> Command:
    return Command(name, Path(sys.executable), ("-c", code), f"{name}.log")


def lives(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for_text(path: Path, text: str) -> None:
    wait_until(lambda: path.exists() and text in path.read_text(encoding="utf-8"))


def wait_until(condition: Callable[[], object]) -> None:
    until(condition, "such state")


def test_what_a_child_prints_is_in_its_log(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        children.start(command("agent", "import sys; print('out', flush=True); print('err', file=sys.stderr)"))
        assert children.wait(LIMIT_S)
        children.check()
    assert (tmp_path / "agent.log").read_text(encoding="utf-8") == "out\nerr\n"


def test_a_failed_child_is_named_with_its_exit_code_and_last_lines(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        other = children.start(command("other", SLEEPS))
        children.start(command("agent", "import sys; print('first'); sys.exit('no broker here')"))
        wait_until(lambda: children.running() == ["other"])
        with pytest.raises(ProcessDied) as caught:
            children.check()
    error = caught.value
    assert (error.name, error.status, error.last_lines) == ("agent", 1, ["first", "no broker here"])
    assert "agent ended with exit code 1" in str(error)
    assert "no broker here" in str(error)
    assert error.exit_code == 1
    assert not lives(other)


def test_a_child_that_was_killed_is_said_to_be_killed(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        pid = children.start(command("agent", PRINTS_AND_SLEEPS))
        wait_for_text(tmp_path / "agent.log", "ready")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not children.running())
        with pytest.raises(ProcessDied, match="agent was killed by SIGKILL"):
            children.check()


def test_children_are_asked_to_end_before_they_are_killed(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        pid = children.start(command("agent", ENDS_ON_SIGTERM))
        wait_for_text(tmp_path / "agent.log", "ready")
    assert not lives(pid)
    assert "goodbye" in (tmp_path / "agent.log").read_text(encoding="utf-8")


def test_a_child_that_will_not_end_is_killed_in_time(tmp_path: Path) -> None:
    children = Children(tmp_path, stop_timeout_s=0.3)
    pid = children.start(command("agent", IGNORES_SIGTERM))
    wait_for_text(tmp_path / "agent.log", "ready")
    assert ends(children.stop)
    assert not lives(pid)


def test_what_a_killed_child_had_started_goes_with_it(tmp_path: Path) -> None:
    starts_another = f"""
import subprocess, sys
print(subprocess.Popen([sys.executable, '-c', {IGNORES_SIGTERM!r}], stdout=subprocess.DEVNULL).pid, flush=True)
{IGNORES_SIGTERM}
"""
    with Children(tmp_path, stop_timeout_s=0.3) as children:
        children.start(command("agent", starts_another))
        wait_for_text(tmp_path / "agent.log", "ready")
        grandchild = int((tmp_path / "agent.log").read_text(encoding="utf-8").split()[0])
        assert lives(grandchild)
    wait_until(lambda: not lives(grandchild))


def test_second_ctrl_c_kills_without_waiting(tmp_path: Path) -> None:
    children = Children(tmp_path, stop_timeout_s=3_600.0)
    pid = children.start(command("agent", IGNORES_SIGTERM))
    wait_for_text(tmp_path / "agent.log", "ready")

    def press_again() -> None:
        wait_for_text(tmp_path / "agent.log", "asked")  # the children are being stopped
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press_again)
    with GracefulStop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.should_stop()
        presser.start()
        with pytest.raises(KeyboardInterrupt):
            children.stop()
        presser.join()
    assert not lives(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_child_outlives_a_parent_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    parent_code = f"""
        import sys, time
        from pathlib import Path
        from cutlayer.simulation.demo_processes import Children, Command
        children = Children(Path({str(tmp_path)!r}))
        code = {PRINTS_AND_SLEEPS!r}
        print(children.start(Command("agent", Path(sys.executable), ("-c", code), "agent.log")), flush=True)
        time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent_code)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_for_text(tmp_path / "agent.log", "ready")
        parent.send_signal(number)
    wait_until(lambda: not lives(pid))


def test_waiting_gives_up_in_time_and_says_so(tmp_path: Path) -> None:
    looks: list[None] = []
    with Children(tmp_path) as children:
        children.start(command("agent", SLEEPS))
        assert not children.wait(0.2, lambda: looks.append(None))
        assert children.running() == ["agent"]
    assert looks


def test_log_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot write"):
        Children(tmp_path / "missing").start(command("agent", SLEEPS))


def test_memory_and_processor_time_of_a_running_child_are_read(tmp_path: Path) -> None:
    holds_40_mb = "import time; held = bytearray(40_000_000); print('ready', flush=True); time.sleep(600)"
    with Children(tmp_path) as children:
        pid = children.start(command("broker", holds_40_mb))
        wait_for_text(tmp_path / "broker.log", "ready")
        usage = usage_of(pid)
    assert usage is not None
    assert 40_000_000 < usage.peak_rss_bytes < 100_000_000
    assert 0 <= usage.cpu_s < 20
    assert usage_of(pid) is None


def test_only_the_end_of_a_long_log_is_shown(tmp_path: Path) -> None:
    log_file = tmp_path / "agent.log"
    log_file.write_text("".join(f"line {number}\n\n" for number in range(10_000)), encoding="utf-8")
    assert last_lines(log_file) == [f"line {number}" for number in range(9_988, 10_000)]
    assert last_lines(tmp_path / "missing.log") == []


def test_console_scripts_are_found_beside_python() -> None:
    assert console_script("cutlayer").is_file()
    with pytest.raises(SettingsError, match="no command cutlayer-nothing"):
        console_script("cutlayer-nothing")
