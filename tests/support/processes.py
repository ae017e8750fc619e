"""Cutlayer's commands as processes of their own, and a worker in a thread, over a real broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_parts import make_manifest, make_session
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import RunSettings, load_run_settings
from support.waiting import LIMIT_S

__all__ = [
    "DIGITS_FILE",
    "SMALL_DIGITS",
    "CountingWorker",
    "Process",
    "counting_worker",
    "digits_settings",
    "script",
    "windows_of",
]

DIGITS_FILE = Path(__file__).parents[2] / "examples" / "digits.toml"
SMALL_DIGITS: dict[str, object] = {
    "run.epochs": 2,
    "model.options": {
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
    },
    "window.samples": 64,
    "telemetry_s": 0.2,
}
"""What makes the digits run small enough for a test, by dotted key."""


def script(name: str) -> str:
    """Return the path of an installed command."""
    return str(Path(sys.executable).parent / name)


def digits_settings(**changes: object) -> RunSettings:
    """Return the settings of a small digits run; `run__epochs=3` changes one of them."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return load_run_settings(DIGITS_FILE, SMALL_DIGITS | dotted)


class Process:
    """A running command. Use as a context manager: it is killed at the end, if it still runs.

    Args:
        arguments: The command and its arguments.
        log: File for all that it prints.
        environment: Further environment variables.
    """

    def __init__(self, arguments: Sequence[str], log: Path, **environment: str) -> None:
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "NO_COLOR": "1", **environment},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def text(self) -> str:
        """Return what it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, timeout_s: float = LIMIT_S) -> None:
        """Wait until it has printed a text, or fail."""
        end_s = time.monotonic() + timeout_s
        while True:
            has_ended = self._process.poll() is not None  # asked first: its last words are there by then
            if text in self.text():
                return
            if has_ended or time.monotonic() > end_s:
                pytest.fail(f"no {text!r} in:\n{self.text()}")
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def exit_code(self, timeout_s: float = LIMIT_S) -> int:
        """Wait until it has ended, and return its exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout_s} s:\n{self.text()}")

    def is_running(self) -> bool:
        """Return whether it runs."""
        return self._process.poll() is None


def windows_of(worker: Process) -> int:
    """Ask a worker's own port how many windows it has committed."""
    worker.wait_for("metrics at http://")
    url = worker.text().partition("metrics at ")[2].split()[0]
    with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:  # noqa: S310 - our own, on the loopback interface
        text: str = answer.read().decode()
    return int(float(text.partition("\ncutlayer_windows_total ")[2].split()[0]))


@dataclass
class CountingWorker:
    """A worker that computes nothing, in a thread of the test."""

    runtime: WorkerRuntime
    engine: CountingEngine
    book: RunBook
    thread: threading.Thread

    def join(self, timeout_s: float = LIMIT_S) -> None:
        """Wait for the end of the run, or fail."""
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), "the run has not ended"
        assert self.runtime.is_finished


@contextmanager
def counting_worker(url: str, settings: RunSettings, **broker: Any) -> Iterator[CountingWorker]:
    """Serve a run; it is stopped at the end, if it has not ended. `broker` are further `BrokerSettings`."""
    built = build(settings, settings.run.seed)
    manifest = make_manifest(settings, built)
    engine = CountingEngine(settings.task.num_outputs)
    book = RunBook(manifest, built.num_tokenizer_parameters)
    session = make_session(settings, manifest, "w0")
    transport = MqttTransport(BrokerSettings(url=url, **broker), "cutlayer-worker-w0", identity="w0")
    runtime = WorkerRuntime(transport, session, engine, built.tokenizer_file, book, url=url)
    stop = threading.Event()
    thread = threading.Thread(target=runtime.run, args=(stop.is_set,))
    thread.start()
    try:
        yield CountingWorker(runtime, engine, book, thread)
    finally:
        stop.set()
        thread.join(LIMIT_S)
