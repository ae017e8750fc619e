"""Networked training against the same arithmetic in one process, and what the transport alone carries.

Mosquitto, one worker and four agents in processes of their own, microbatches of 32. Both run in turn, several times,
since machines are shared and noisy: read the ratio of each pair. Steps a second are counted after the first epoch, in
which samples are made.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from cutlayer.broker.broker_options import BrokerOptions
from cutlayer.broker.launcher import launch_broker

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
RUN = HERE / "digits_int8.toml"
NUM_AGENTS = 4
_STEPS = re.compile(r"^cutlayer_steps_total ([0-9.e+]+)$", re.MULTILINE)
_PORT = re.compile(r"http://127\.0\.0\.1:(\d+)/metrics")


def in_process(epochs: int) -> float:
    """Return microbatches a second of the arithmetic alone, in a fresh process."""
    command = [sys.executable, str(HERE / "in_process.py"), "--run", str(RUN), "--epochs", str(epochs)]
    command += ["--sites", str(NUM_AGENTS)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def networked(epochs: int, *, counting: bool = False) -> float:
    """Return microbatches a second of a real run; `counting` puts a server that computes nothing in its place."""
    with tempfile.TemporaryDirectory() as folder, launch_broker(BrokerOptions(kind="mosquitto", port=0)) as broker:
        output = Path(folder)
        program = (
            [sys.executable, str(HERE / "counting_worker.py")] if counting else [str(BIN / "server-worker"), "start"]
        )
        worker_command = [*program, "--run", str(RUN), "--broker", broker.url, "--min-agents", str(NUM_AGENTS)]
        worker_command += ["--output", folder, "--epochs", str(epochs + 1), "--http-port", "0"]
        worker_command += ["--set", "run.microbatch_samples=32", "--set", "window.samples=128"]
        worker_command += ["--set", "evaluation.every_epochs=0", "--set", "worker.checkpoint_every_windows=1000000"]
        processes: list[subprocess.Popen[str]] = []
        try:
            with (output / "worker.log").open("w") as log:
                processes.append(subprocess.Popen(worker_command, stderr=log, text=True))
            for index in range(NUM_AGENTS):
                command = [str(BIN / "edge-agent"), "start", "--topic", f"site/{index}", "--data", "demo:digits"]
                command += ["--shard", f"{index}/{NUM_AGENTS}", "--broker", broker.url, "--quiet"]
                processes.append(subprocess.Popen(command, text=True, stderr=subprocess.DEVNULL))
            return _rate(output / "worker.log", processes[0], epochs)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(timeout=20)


def _rate(log: Path, worker: subprocess.Popen[str], epochs: int) -> float:
    """Watch the worker's step counter and return its rate after the first of `epochs` + 1 epochs."""
    deadline = time.monotonic() + 600
    while not (found := _PORT.search(log.read_text())):
        _check(worker, log, deadline)
        time.sleep(0.05)
    url = f"http://127.0.0.1:{found[1]}/metrics"
    total = _total_steps(epochs + 1)
    start: tuple[float, float] | None = None
    while True:
        _check(worker, log, deadline)
        with urllib.request.urlopen(url, timeout=10) as answer:
            match = _STEPS.search(answer.read().decode())
        now, steps = time.perf_counter(), float(match[1]) if match else 0.0
        if start is None and steps >= total / (epochs + 1):
            start = now, steps
        if steps >= total and start is not None:
            return (steps - start[1]) / (now - start[0])
        time.sleep(0.02)


def _check(worker: subprocess.Popen[str], log: Path, deadline: float) -> None:
    if worker.poll() is not None or time.monotonic() > deadline:
        sys.exit(f"the worker did not finish:\n{log.read_text()}")


def _total_steps(epochs: int) -> int:
    from cutlayer.edge_agent.datasets import open_dataset
    from cutlayer.edge_agent.partition import Shard

    samples = [
        open_dataset("demo:digits", shard=Shard(index, NUM_AGENTS)).num_samples("train") for index in range(NUM_AGENTS)
    ]
    return epochs * sum(-(-num_samples // 32) for num_samples in samples)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    ratios = []
    print(f"{os.cpu_count()} cores; steps (microbatches of 32) a second, {NUM_AGENTS} agents, Mosquitto")
    print("round  in process  networked  ratio")
    for index in range(arguments.rounds):
        alone, over_network = in_process(arguments.epochs), networked(arguments.epochs)
        ratios.append(over_network / alone)
        print(f"{index + 1:5d}  {alone:10.1f}  {over_network:9.1f}  {ratios[-1]:5.3f}", flush=True)
    print(f"ratio: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")
    ceilings = [networked(arguments.epochs * 3, counting=True) for _ in range(3)]
    print(f"transport ceiling, a server that computes nothing: median {statistics.median(ceilings):.0f} steps/s")


if __name__ == "__main__":
    main()
