"""Visits of `cutlayer doctor` to real brokers, and a worker for it to meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.topics import RUN, WorkerTopics
from cutlayer.simulation.doctor import DoctorSettings, examine
from cutlayer.simulation.doctor_report import Finding, Verdict
from support.brokers import mqtt_client, unique
from support.processes import CountingWorker, counting_worker, digits_settings

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


def visit(url: str, *, topic: str | None = AGENT, timeout_s: float = 2.0, **broker: Any) -> Visit:
    """Send the doctor to a broker."""
    settings = DoctorSettings(broker=BrokerSettings(url=url, **broker), topic=topic, timeout_s=timeout_s)
    return Visit(list(examine(settings)))


@contextmanager
def worker_online(url: str, **broker: Any) -> Iterator[CountingWorker]:
    """Serve a small run with a worker that computes nothing; it is announced when the body begins."""
    with counting_worker(url, digits_settings(), **broker) as worker:
        with mqtt_client(url, unique("watcher"), **broker) as watcher:
            watcher.connect(None, RUN, WorkerTopics("w0").state)
            watcher.receive(2)
        yield worker
