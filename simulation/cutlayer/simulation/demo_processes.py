"""The demo's child processes: started with a log each, watched, and ended whatever happens.

Nobody is left behind: a child runs in a session of its own, so that Ctrl-C reaches the demo alone, which then ends
its children in order; and the kernel ends them when the demo is killed (`cutlayer.broker.parent_guard`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cutlayer.broker import parent_guard
from cutlayer.broker.errors import CutlayerError, SettingsError

__all__ = ["Children", "Command", "ProcessDied", "ProcessUsage", "console_script", "usage_of"]

STOP_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.05
LOG_TAIL_BYTES: Final = 8_192
LOG_TAIL_LINES: Final = 12


class ProcessDied(CutlayerError):
    """One of the demo's processes ended before the run did.

    Args:
        name: The process.
        status: Its exit code, or minus the number of the signal that killed it.
        log_file: What it has printed.
        last_lines: The end of that.
    """

    def __init__(self, name: str, status: int, log_file: Path, last_lines: list[str]) -> None:
        self.name = name
        self.status = status
        self.log_file = log_file
        self.last_lines = last_lines
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        said = "".join(f"\n    {line}" for line in last_lines) or "\n    (nothing)"
        super().__init__(f"{name} {how} before the run had ended; everything else was stopped\n  {log_file}:{said}")


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start.

    Attributes:
        name: For people, such as `agent clinic/00`; unique.
        program: Absolute path.
        arguments: Its arguments.
        log_name: Name of its log file.
    """

    name: str
    program: Path
    arguments: tuple[str, ...]
    log_name: str

    def __str__(self) -> str:
        """Return what a person would type."""
        return " ".join((self.program.name, *self.arguments))


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """What a process has used, by the kernel's count.

    Attributes:
        peak_rss_bytes: Largest resident memory.
        cpu_s: Processor seconds, user and system.
    """

    peak_rss_bytes: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    log_file: Path


class Children:
    """The running children. Leaving the context ends those that still run.

    Args:
        log_dir: Folder for their logs; exists.
        stop_timeout_s: How long they may take to end by themselves.
    """

    def __init__(self, log_dir: Path, *, stop_timeout_s: float = STOP_TIMEOUT_S) -> None:
        self._log_dir = log_dir
        self._stop_timeout_s = stop_timeout_s
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, command: Command) -> int:
        """Start a process; return its id.

        Raises:
            SettingsError: When the log cannot be written.
        """
        assert command.name not in self._children, "names are unique"
        log_file = self._log_dir / command.log_name
        guard = [sys.executable, "-I", "-S", str(parent_guard.__file__), str(os.getpid()), "-"]
        try:
            with log_file.open("wb") as log:
                process = subprocess.Popen(
                    [*guard, str(command.program), *command.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise SettingsError(f"cannot write {log_file}: {error.strerror}", "choose another --output") from error
        self._children[command.name] = _Child(process, log_file)
        return process.pid

    def is_running(self, name: str) -> bool:
        """Tell whether a process still runs."""
        return self._children[name].process.poll() is None

    def running(self) -> list[str]:
        """Return the names of the processes that still run."""
        return [name for name in self._children if self.is_running(name)]

    def check(self) -> None:
        """Look for a process that has failed.

        Raises:
            ProcessDied: When one has ended with another status than 0.
        """
        for name, child in self._children.items():
            status = child.process.poll()
            if status:
                raise ProcessDied(name, status, child.log_file, last_lines(child.log_file))

    def wait(self, timeout_s: float, between: Callable[[], None] = lambda: None) -> bool:
        """Wait until all have ended, at most `timeout_s` seconds; return whether they have.

        Args:
            timeout_s: Seconds.
            between: Called again and again meanwhile.
        """
        end_at = time.monotonic() + timeout_s
        while self.running():
            if time.monotonic() >= end_at:
                return False
            between()
            time.sleep(POLL_S)
        return True

    def stop(self) -> None:
        """End all: SIGTERM, and SIGKILL for whoever has not ended in time, or at once after a second Ctrl-C."""
        try:
            for name in self.running():
                self._children[name].process.terminate()
            self.wait(self._stop_timeout_s)
        finally:
            for child in self._children.values():
                if child.process.poll() is None:
                    with suppress(ProcessLookupError):
                        # The child leads a session of its own: whatever it has started goes with it.
                        os.killpg(child.process.pid, signal.SIGKILL)
                    child.process.wait()


def console_script(name: str) -> Path:
    """Return the path of one of Cutlayer's commands.

    Raises:
        SettingsError: When it is not beside the running Python.
    """
    path = Path(sys.executable).with_name(name)
    if not path.is_file():
        raise SettingsError(
            f"no command {name} beside {sys.executable}", "install Cutlayer into this Python (pip install -e .)"
        )
    return path


def last_lines(log_file: Path) -> list[str]:
    """Return the last lines of a log, without blank ones."""
    try:
        with log_file.open("rb") as log:
            log.seek(max(log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES, 0))
            text = log.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-LOG_TAIL_LINES:]


def usage_of(pid: int) -> ProcessUsage | None:
    """Return what a running process has used until now, or None where it has ended or the system has no /proc."""
    folder = Path("/proc") / str(pid)
    try:
        status = (folder / "status").read_text(encoding="utf-8")
        # proc(5): utime and stime are fields 14 and 15; the name, field 2, may hold spaces and parentheses.
        fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), None)
    if peak is None:  # a process that has ended and not been waited for has no memory left
        return None
    ticks = int(fields[11]) + int(fields[12])
    return ProcessUsage(int(peak) * 1024, ticks / os.sysconf("SC_CLK_TCK"))
