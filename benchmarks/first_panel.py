"""How long after a run's start the overview shows something, panel by panel.

Mosquitto, Prometheus with the configuration that is shipped (its intervals too; only the targets are named), one worker
and four agents in processes of their own. The clock starts with the worker's and the agents' processes; each panel's
queries are asked of Prometheus as Grafana would, twice a second, until all have had an answer that is not 0, or the
time is over. A browser adds up to its refresh, 5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

from cutlayer.broker.broker_options import BrokerOptions
from cutlayer.broker.launcher import launch_broker
from cutlayer.dashboards.overview_board import OVERVIEW
from cutlayer.dashboards.panels import Panel
from cutlayer.dashboards.promql import promql

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "examples" / "digits.toml"
CONFIG = ROOT / "dashboards" / "prometheus" / "prometheus.yml"
NUM_AGENTS = 4
RATE_WINDOW, AGENT_RATE_WINDOW = "20s", "60s"
"""What Grafana makes of `$__rate_interval`: four times the interval of a scrape."""
POLL_S = 0.5
TRAINING = "(the run is training, by the worker's own /metrics)"


def first_answers(seconds: float) -> dict[str, float | None]:
    """Return for each panel the seconds until one of its queries had an answer, and one that was not 0."""
    with tempfile.TemporaryDirectory() as folder, launch_broker(BrokerOptions(kind="mosquitto", port=0)) as broker:
        worker_port, port = _free_port(), _free_port()
        config = Path(folder) / "prometheus.yml"
        config.write_text(_configuration(worker_port), encoding="utf-8")
        prometheus = [shutil.which("prometheus") or "prometheus", f"--config.file={config}"]
        prometheus += [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={folder}/prometheus"]
        worker = [str(BIN / "server-worker"), "start", "--run", str(RUN), "--broker", broker.url, "--output", folder]
        worker += ["--min-agents", str(NUM_AGENTS), "--http-port", str(worker_port)]
        agent = [str(BIN / "edge-agent"), "start", "--data", "demo:digits", "--broker", broker.url, "--quiet"]
        agents = [[*agent, "--topic", f"clinic/{n:02d}", "--shard", f"{n}/{NUM_AGENTS}"] for n in range(NUM_AGENTS)]
        processes = [subprocess.Popen(prometheus, stderr=subprocess.DEVNULL)]
        try:
            _wait_for(port)
            began_at = time.monotonic()
            processes += [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in [worker, *agents]]
            return _watch(f"http://127.0.0.1:{port}", worker_port, began_at, seconds)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()


def _watch(url: str, worker_port: int, began_at: float, seconds: float) -> dict[str, float | None]:
    found: dict[str, float | None] = dict.fromkeys([TRAINING, *(panel.title for panel in OVERVIEW.panels)])
    while time.monotonic() < began_at + seconds and None in found.values():
        if found[TRAINING] is None and _is_training(worker_port):
            found[TRAINING] = time.monotonic() - began_at
        for panel in OVERVIEW.panels:
            if found[panel.title] is None and _has_answer(url, panel):
                found[panel.title] = time.monotonic() - began_at
        time.sleep(POLL_S)
    return found


def _is_training(worker_port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{worker_port}/metrics", timeout=5) as answer:
            return b'cutlayer_run_phase{phase="training"} 1.0' in answer.read()
    except OSError:
        return False


def _has_answer(url: str, panel: Panel) -> bool:
    for target in panel.targets:
        is_of_agents = any(name.startswith("cutlayer_agent_") for name in panel.metrics)
        window = AGENT_RATE_WINDOW if is_of_agents else RATE_WINDOW
        query = urllib.parse.urlencode({"query": promql(target.query, matchers="", window=window, span="15m")})
        with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=10) as answer:  # noqa: S310 - loopback
            values = [float(series["value"][1]) for series in json.load(answer)["data"]["result"]]
        if any(value > 0 for value in values):
            return True
    return False


def _configuration(worker_port: int) -> str:
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["rule_files"] = []
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{worker_port}"]}]
    return str(yaml.safe_dump(config))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    give_up_at = time.monotonic() + 30.0
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5):
                return
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.1)


def main() -> None:
    """Print a line for each panel, the first to show something first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to watch at most (default: 60)")
    found = first_answers(parser.parse_args().seconds)
    print(f"load of the machine now: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("seconds from the start of the processes until a panel of the overview shows something other than 0:")
    for title, after_s in sorted(found.items(), key=lambda item: (item[1] is None, item[1] or 0.0)):
        print(f"  {'never' if after_s is None else f'{after_s:5.1f}'}  {title}")


if __name__ == "__main__":
    main()
