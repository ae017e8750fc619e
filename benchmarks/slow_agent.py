"""What one agent that is a hundred times slower costs the others, in real processes.

Mosquitto, one worker and three agents in processes of their own, with and without a fourth whose samples take long to
come. Both run in turn, several times, since machines are shared and noisy: read the ratio of each pair. Steps a second
are those of the three, by their own reports to the worker, after the first ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cutlayer.broker.broker_options import BrokerOptions
from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.launcher import launch_broker
from cutlayer.broker.messages import Telemetry, parse
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.transport import Received

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
RUN = HERE / "digits_int8.toml"
NUM_FAST = 3
SLOWER = 100.0
WARM_UP_S = 8.0
"""Until samples are made and the slow agent has been seen once."""
TIMEOUT_S = 120.0


def fast_steps_per_s(seconds: float, slow_s: float | None) -> float:
    """Return the steps a second of the fast agents, beside one that takes `slow_s` for each of its microbatches."""
    num_agents = NUM_FAST + (slow_s is not None)
    with tempfile.TemporaryDirectory() as folder, launch_broker(BrokerOptions(kind="mosquitto", port=0)) as broker:
        worker = [str(BIN / "server-worker"), "start", "--run", str(RUN), "--broker", broker.url, "--output", folder]
        worker += ["--min-agents", str(num_agents), "--epochs", "100000", "--http-port", "0"]
        worker += ["--set", "evaluation.every_epochs=0", "--set", "worker.checkpoint_every_windows=1000000"]
        worker += ["--set", "telemetry_s=0.25"]
        commands = [worker]
        for index in range(num_agents):
            is_slow = index == NUM_FAST
            start = [sys.executable, str(HERE / "slow_edge_agent.py"), str(slow_s)] if is_slow else []
            command = start or [str(BIN / "edge-agent"), "start"]
            command = [*command, "--topic", "slow/0" if is_slow else f"fast/{index}", "--data", "demo:digits"]
            commands.append([*command, "--shard", f"{index}/{NUM_FAST + 1}", "--broker", broker.url, "--quiet"])
        processes: list[subprocess.Popen[bytes]] = []
        try:
            processes.extend(subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands)
            return _rate(broker.url, seconds, processes)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()


def _rate(url: str, seconds: float, processes: list[subprocess.Popen[bytes]]) -> float:
    """Listen to the fast agents' reports: steps between the first and the last of each, over the time between."""
    transport = MqttTransport(BrokerSettings(url=url), "cutlayer-slow-agent-benchmark")
    transport.subscribe("fast/+/up/telemetry")
    transport.connect(None)
    reports: dict[str, list[tuple[float, int]]] = {}
    began_at: float | None = None
    give_up_at = time.monotonic() + TIMEOUT_S + seconds
    try:
        while began_at is None or time.monotonic() < began_at + WARM_UP_S + seconds:
            if time.monotonic() > give_up_at or any(process.poll() is not None for process in processes):
                sys.exit("the run has not come about")
            transport.wait(0.1)
            for event in transport.poll():
                message = parse(event.payload) if isinstance(event, Received) and event.payload else None
                if isinstance(event, Received) and isinstance(message, Telemetry) and message.steps:
                    reports.setdefault(event.topic, []).append((time.monotonic(), message.steps))
            if began_at is None and len(reports) == NUM_FAST:
                began_at = time.monotonic()
    finally:
        transport.close()
    rates = []
    for entries in reports.values():
        counted = [entry for entry in entries if entry[0] >= began_at + WARM_UP_S]
        rates.append((counted[-1][1] - counted[0][1]) / (counted[-1][0] - counted[0][0]))
    return sum(rates)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    ratios = []
    print(f"{os.cpu_count()} cores; steps a second of {NUM_FAST} agents, one worker, Mosquitto")
    print("round  alone  beside a slow agent  ratio")
    for index in range(arguments.rounds):
        alone = fast_steps_per_s(arguments.seconds, None)
        beside = fast_steps_per_s(arguments.seconds, SLOWER * NUM_FAST / alone)
        ratios.append(beside / alone)
        print(f"{index + 1:5d}  {alone:5.1f}  {beside:19.1f}  {ratios[-1]:5.3f}", flush=True)
    print(f"ratio: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
