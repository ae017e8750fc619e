"""Test accuracy of the asynchronous int8 demo against the synchronous fp32 run and centralized training.

Also of models trained on one modality only. All with the same data, model, epochs and schedule; the networked runs are
whole demos with real processes. Prints each seed, the means, and the differences of the means with the standard error
of the paired differences.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
RUN = HERE / "digits_int8.toml"


def demo(seed: int, *flags: str) -> dict[str, float]:
    """Run a demo and return its test accuracy, given all modalities (`joint`) and given each alone."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(BIN / "cutlayer"), "demo", "--quiet", "--seed", str(seed), "--output", folder, *flags]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        run: dict[str, dict[str, float]] = json.loads(Path(done.stdout.strip().splitlines()[-1]).read_text())
        return run["accuracy"]


def centralized(seed: int, *flags: str) -> dict[str, float]:
    """Train on the pooled data in one process and return the same."""
    command = [sys.executable, "-m", "benchmarks.centralized", "--seed", str(seed), *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
    accuracy: dict[str, float] = json.loads(done.stdout)
    return accuracy


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    arguments = parser.parse_args()
    variants: dict[str, Callable[[int], dict[str, float]]] = {
        "asynchronous int8": lambda seed: demo(seed, "--run", str(RUN)),
        "synchronous fp32": lambda seed: demo(seed, "--run", str(RUN), "--mode", "synchronous", "--codec", "identity"),
        "centralized": centralized,
        "image only, centralized": lambda seed: centralized(seed, "--modality", "image"),
        "audio only, centralized": lambda seed: centralized(seed, "--modality", "audio"),
    }
    joint: dict[str, list[float]] = {name: [] for name in variants}
    print(f"{'variant':26s} seed   joint   audio   image")
    tasks = [(name, seed) for seed in range(arguments.seeds) for name in variants]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(lambda task: variants[task[0]](task[1]), tasks)
        for (name, seed), accuracy in zip(tasks, results, strict=True):
            joint[name].append(accuracy["joint"])
            alone = "".join(
                f"  {accuracy[given]:.4f}" if given in accuracy else "       -" for given in ("audio", "image")
            )
            print(f"{name:26s} {seed:4d}  {accuracy['joint']:.4f}{alone}", flush=True)
    print(f"\n{'variant':26s} mean    minus asynchronous int8 (standard error)")
    reference = joint["asynchronous int8"]
    for name, values in joint.items():
        paired = [value - other for value, other in zip(values, reference, strict=True)]
        error = statistics.stdev(paired) / len(paired) ** 0.5 if len(paired) > 1 else float("nan")
        print(
            f"{name:26s} {statistics.mean(values):.4f}  {100 * statistics.mean(paired):+.2f} points ({100 * error:.2f})"
        )


if __name__ == "__main__":
    main()
