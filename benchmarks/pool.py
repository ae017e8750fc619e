"""Two workers on one core each against one worker on one core: committed samples a second, alternated in one run.

Mosquitto, torchft's lighthouse, eight agents and one or two workers, all in processes of their own. The encoder is a
ViT of 192 features and 12 blocks (5.4 million parameters), so that a worker's core is what limits the run; agents and
broker run wherever there is room. Both run in turn, several times, since machines are shared and noisy: read the ratio
of each pair.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from cutlayer.broker.broker_options import BrokerOptions
from cutlayer.broker.launcher import launch_broker

BIN = Path(sys.executable).parent
RUN = Path(__file__).with_name("digits_int8.toml")
NUM_AGENTS = 8
NUM_DIGITS_AGENTS = 4
LIGHTHOUSE_PORT = 29_531
_PORT = re.compile(r"http://127\.0\.0\.1:(\d+)/metrics")
_SAMPLES = re.compile(r"^cutlayer_samples_total ([0-9.e+]+)$", re.MULTILINE)
BIG = {"model.options.embed_dim": "192", "model.options.depth": "12", "model.options.num_heads": "3"}


class Run:
    """One run with some workers. Use as a context manager.

    Args:
        num_workers: Workers of the pool.
        settings: Run settings by dotted key.
        folder: For logs and results.
        num_agents: Agents that share the samples.
    """

    def __init__(self, num_workers: int, settings: dict[str, str], folder: Path, num_agents: int = NUM_AGENTS) -> None:
        self._num_workers = num_workers
        self._num_agents = num_agents
        self._settings = settings
        self.folder = folder
        self._stack = ExitStack()
        self.workers: list[subprocess.Popen[bytes]] = []
        self._logs: list[Path] = []

    def __enter__(self) -> Run:
        broker = self._stack.enter_context(launch_broker(BrokerOptions(kind="mosquitto", port=0)))
        lighthouse = [str(BIN / "torchft_lighthouse"), "--min_replicas", "1", "--bind", f"127.0.0.1:{LIGHTHOUSE_PORT}"]
        self._start([*lighthouse, "--heartbeat_timeout_ms", "2000"], self.folder / "lighthouse.log")
        settings = [word for key, value in self._settings.items() for word in ("--set", f"{key}={value}")]
        for index in range(self._num_workers):
            command = ["taskset", "-c", str(index), str(BIN / "server-worker"), "start", "--run", str(RUN), *settings]
            command += ["--set", "worker.threads=1", "--min-agents", str(self._num_agents), "--broker", broker.url]
            command += ["--name", f"w{index}", "--pool", f"http://127.0.0.1:{LIGHTHOUSE_PORT}"]
            command += ["--output", str(self.folder / f"w{index}"), "--http-port", "0"]
            self._logs.append(self.folder / f"w{index}.log")
            self.workers.append(self._start(command, self._logs[-1]))
        for index in range(self._num_agents):
            command = [str(BIN / "edge-agent"), "start", "--topic", f"site/{index}", "--data", "demo:digits"]
            command += ["--shard", f"{index}/{self._num_agents}", "--broker", broker.url]
            self._start(command, self.folder / f"agent-{index}.log")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def samples(self) -> float:
        """Return how many samples the pool has committed."""
        while not (found := _PORT.search(self._logs[0].read_text())):
            self._check()
            time.sleep(0.1)
        self._check()
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/metrics", timeout=60) as answer:
            match = _SAMPLES.search(answer.read().decode())
        return float(match[1]) if match else 0.0

    def _check(self) -> None:
        for worker, log in zip(self.workers, self._logs, strict=True):
            if worker.poll() not in (None, 0):
                sys.exit(f"a worker has ended:\n{log.read_text()}")


def throughput(num_workers: int, seconds: float) -> float:
    """Return committed samples a second, after the first four windows."""
    settings = BIG | {
        "run.epochs": "1000",
        "run.microbatch_samples": "16",
        "window.samples": "256",
        "evaluation.every_epochs": "0",
        "worker.checkpoint_every_windows": "1000000",
        "worker.max_batch_samples": "32",
    }
    with tempfile.TemporaryDirectory() as folder, Run(num_workers, settings, Path(folder)) as run:
        while run.samples() < 4 * 256:
            time.sleep(0.2)
        start, before = time.perf_counter(), run.samples()
        time.sleep(seconds)
        # From commit to commit: a window that is half done counts for nobody.
        while (after := run.samples()) == before:
            time.sleep(0.02)
        return (after - before) / (time.perf_counter() - start)


def accuracy(num_workers: int, seed: int, epochs: int) -> float:
    """Return the accuracy of the digits run."""
    settings = {"run.seed": str(seed), "run.epochs": str(epochs), "evaluation.every_epochs": "0"}
    with tempfile.TemporaryDirectory() as folder, Run(num_workers, settings, Path(folder), NUM_DIGITS_AGENTS) as run:
        for worker in run.workers:
            worker.wait(timeout=1_800)
        result = json.loads((Path(folder) / "w0" / "run.json").read_text())
        return float(result["accuracy"]["joint"])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each measurement")
    parser.add_argument("--seeds", type=int, default=0, help="of the digits run's accuracy with one and two workers")
    parser.add_argument("--epochs", type=int, default=10, help="of the digits run")
    arguments = parser.parse_args()
    if arguments.rounds:
        print(f"{os.cpu_count()} cores; committed samples a second, {NUM_AGENTS} agents, Mosquitto, workers pinned")
        print("round  one worker  two workers  ratio")
    ratios = []
    for index in range(arguments.rounds):
        one, two = throughput(1, arguments.seconds), throughput(2, arguments.seconds)
        ratios.append(two / one)
        print(f"{index + 1:5d}  {one:10.1f}  {two:11.1f}  {ratios[-1]:5.3f}", flush=True)
    if ratios:
        print(f"ratio: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")
    for seed in range(arguments.seeds):
        one, two = accuracy(1, seed, arguments.epochs), accuracy(2, seed, arguments.epochs)
        print(f"digits, seed {seed}: accuracy {one:.4f} with one worker, {two:.4f} with two", flush=True)


if __name__ == "__main__":
    main()
