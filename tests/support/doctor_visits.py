"""Visits of `cutlayer doctor` to real brokers, and a worker for it to meet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.topics import RUN
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.program import make_manifest, make_session
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.simulation.doctor import DoctorSettings, examine
from cutlayer.simulation.doctor_report import Finding, Verdict
from support.brokers import mqtt_client, unique
from support.processes import digits_settings

__all__ = ["AGENT", "Visit", "visit", "worker_online"]

AGENT = "clinic/07"


@dataclass(frozen=True)
class Visit:
    """What the doctor has found."""

    findings: list[Finding]

    def one(self, check: str) -> Finding:
        """Return the only finding of a check, or fail."""
        found = [finding for finding in self.findings if finding.check == check]
        if len(found) != 1:
            pytest.fail(f"{len(found)} findings of {check!r}: {self.findings}")
        return found[0]

    def right(self, line: str) -> Finding:
        """Return the finding of a right, by its line of the ACL."""
        (found,) = [finding for finding in self.findings if finding.values.get("right") == f"topic {line}"]
        return found

    def checks(self, verdict: Verdict) -> list[str]:
        """Return the checks that have a verdict, rights by their line of the ACL."""
        return [
            str(finding.values.get("right", finding.check)).removeprefix("topic ")
            for finding in self.findings
            if finding.verdict is verdict
        ]


def visit(url: str, *, topic: str | None = AGENT, timeout_s: float = 3.0, **broker: Any) -> Visit:
    """Send the doctor to a broker."""
    settings = DoctorSettings(broker=BrokerSettings(url=url, **broker), topic=topic, timeout_s=timeout_s)
    return Visit(list(examine(settings)))


@contextmanager
def worker_online(url: str, **broker: Any) -> Iterator[WorkerRuntime]:
    """Serve a small run with a worker that computes nothing; it is announced when the body begins."""
    settings = digits_settings()
    built = build(settings, settings.run.seed)
    manifest = make_manifest(settings, built)
    runtime = WorkerRuntime(
        MqttTransport(BrokerSettings(url=url, **broker), "cutlayer-worker-w0", identity="w0"),
        make_session(settings, manifest, "w0"),
        CountingEngine(len(settings.task.classes)),
        manifest,
        built.tokenizer_file,
        RunBook(manifest, built.num_tokenizer_parameters),
        url=url,
    )
    stop = threading.Event()
    thread = threading.Thread(target=runtime.run, args=(stop.is_set,))
    thread.start()
    try:
        with mqtt_client(url, unique("watcher"), **broker) as watcher:
            watcher.connect(None, RUN, "cutlayer/workers/w0/state")
            watcher.receive(2)
        yield runtime
    finally:
        stop.set()
        thread.join(30.0)
