"""A real Prometheus and its promtool, for tests: started on a free port, asked over its HTTP API."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.ports import free_port
from support.processes import Process

__all__ = ["SHIPPED", "Prometheus", "backfill", "needs_prometheus", "promtool", "running_prometheus", "shipped_config"]

SHIPPED = Path(__file__).parents[2] / "dashboards" / "prometheus"
"""The configuration that Cutlayer ships."""
TIMEOUT_S = 120.0

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None and not os.environ.get("CUTLAYER_SKIP_NOTHING"),
    reason="prometheus and promtool are not installed (apt-get install prometheus)",
)

Labels = tuple[tuple[str, str], ...]
"""Names and values, sorted."""


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; the result has its exit code and all that it has printed in `stdout`."""
    return subprocess.run(
        [shutil.which("promtool") or "promtool", *map(str, arguments)],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus.

    Attributes:
        url: Where it answers.
        process: The process.
    """

    url: str
    process: Process

    def get(self, path: str, **parameters: str | float) -> Any:
        """Return the `data` of an answer, or fail with what it says is wrong."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:  # noqa: S310 - our own loopback address
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{parameters}: {error.read().decode()}")

    def ask(self, expression: str, at_s: float | None = None) -> dict[Labels, float]:
        """Answer an instant query: a value for each set of labels, NaN left out."""
        data = self.get("query", query=expression, **({} if at_s is None else {"time": at_s}))
        if data["resultType"] == "scalar":
            data["result"] = [{"metric": {}, "value": data["result"]}]
        found = {
            tuple(sorted((name, value) for name, value in series["metric"].items() if name != "__name__")): float(
                series["value"][1]
            )
            for series in data["result"]
        }
        return {labels: value for labels, value in found.items() if not math.isnan(value)}

    def wait_until(self, expression: str, what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a query has an answer, or fail."""
        end_s = time.monotonic() + timeout_s
        while not self.ask(expression):
            if time.monotonic() > end_s or not self.process.is_running():
                pytest.fail(f"no {what} within {timeout_s:g} s ({expression})\n{self.process.text()[-2000:]}")
            time.sleep(0.2)


@contextmanager
def running_prometheus(folder: Path, config: Path, *flags: str) -> Iterator[Prometheus]:
    """Start Prometheus with its data in a folder; it is killed at the end."""
    port = free_port()
    data = folder / "prometheus"
    data.mkdir(exist_ok=True)
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={data}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", *flags]
    with Process(command, folder / "prometheus.log") as process:
        server = Prometheus(f"http://127.0.0.1:{port}", process)
        process.wait_for("Server is ready to receive web requests")
        yield server


def shipped_config(folder: Path, targets: Iterable[str], interval: str | None = None) -> Path:
    """Write the shipped configuration with other targets, and another interval where one is given; nothing else."""
    config: dict[str, Any] = yaml.safe_load((SHIPPED / "prometheus.yml").read_text(encoding="utf-8"))
    config["rule_files"] = [str(SHIPPED / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        assert job.pop("dns_sd_configs"), job
        job["static_configs"] = [{"targets": list(targets)}]
        if interval is not None:
            job.pop("scrape_interval", None)
    if interval is not None:
        config["global"] |= {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def backfill(folder: Path, series: Mapping[tuple[str, str, Labels], Mapping[float, float]]) -> None:
    """Write a history into a Prometheus that is not started yet.

    Args:
        folder: As for `running_prometheus`.
        series: Values by their time, by family with its kind, sample name and labels; grouped by family.
    """
    lines, seen = [], ""
    for (family, name, labels), values in series.items():
        if family != seen:
            lines.append(f"# TYPE {family}")
            seen = family
        text = ",".join(f"{label}={json.dumps(value)}" for label, value in labels)
        lines += [f"{name}{{{text}}} {value!r} {at_s!r}" for at_s, value in values.items()]
    history = folder / "history.txt"
    history.write_text("\n".join([*lines, "# EOF", ""]), encoding="utf-8")
    data = folder / "prometheus"
    data.mkdir()
    result = promtool("tsdb", "create-blocks-from", "openmetrics", history, data)
    assert result.returncode == 0, result.stdout
