"""Accuracy of whole trainings against all their bytes: schemes of sending, several seeds, the digits task.

Worker and agents are the real ones, over the in-memory broker in virtual time: its packets have the sizes that MQTT's
have (tests/simulation/test_wire_bytes.py), and the same seed gives the same run, byte for byte. What is compared
differs in the scheme alone: seeds, data, initial weights, order of samples and windows are the same.

Each result is a line of JSON in the output file. Runs that it has already are not made again, so a long series may be
stopped and taken up.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cutlayer.broker.messages import Direction, Evaluation
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.partition import Shard
from cutlayer.server_worker.activation_store import MemoryActivationStore
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_parts import make_engine, make_manifest, make_session
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import load_run_settings
from cutlayer.server_worker.store_keeper import StoreKeeper
from cutlayer.server_worker.worker_options import WorkerOptions
from cutlayer.simulation.virtual import VirtualNetwork

NUM_AGENTS = 4
EPOCHS = 15
RUN = Path("examples/digits.toml")
EXACT = {"codecs.activations": "identity", "codecs.outputs": "identity", "codecs.output_gradients": "identity"}
COMMON: Mapping[str, object] = {
    "run.epochs": EPOCHS,
    "run.microbatch_samples": 32,
    "run.min_agents": NUM_AGENTS,
    "run.absence_grace_s": 3_600.0,
    "worker.lease_s": 3_600.0,
    "window.mode": "synchronous",
    "evaluation.every_epochs": 0,
    "codecs.activation_gradients": "identity",
}


@dataclass(frozen=True)
class Scheme:
    """A way of sending.

    Attributes:
        title: For people.
        settings: Run settings, by dotted key.
    """

    title: str
    settings: Mapping[str, object] = field(default_factory=dict)


SMALL = {"codecs.outputs": "int8:block=all", "codecs.output_gradients": "int8:block=all"}
TRAINABLE = {"tokenizers.mode": "trainable"}
BOTH = ("image", "audio")


def _scheme(mode: str, codec: str, **more: object) -> Scheme:
    return Scheme(f"`{codec}`", {**SMALL, "codecs.activations": codec, "activations.mode": mode, **more})


def _reduced(kind: str) -> Scheme:
    settings = {f"activations.reduction.{name}": {"kind": kind, "keep": 0.5} for name in BOTH}
    return Scheme(f"`int8+zstd`, half the tokens ({kind})", {**_scheme("once", "int8+zstd").settings, **settings})


def _trained(mode: str, codec: str) -> Scheme:
    return Scheme(
        f"`{codec}` both ways",
        {**_scheme(mode, codec).settings, **TRAINABLE, "codecs.activation_gradients": codec},
    )


SCHEMES: Mapping[str, Scheme] = {
    "paper": Scheme("float32", {**EXACT, "activations.mode": "every-step"}),
    "every-step-fp16": _scheme("every-step", "fp16"),
    "every-step-int8": _scheme("every-step", "int8+zstd"),
    "every-step-int4": _scheme("every-step", "int4+zstd"),
    "every-step-lowrank-0.1": _scheme("every-step", "lowrank:error=0.1"),
    "once-fp32": _scheme("once", "identity"),
    "once-int8": _scheme("once", "int8+zstd"),
    "once-int4": _scheme("once", "int4+zstd"),
    "once-int2": _scheme("once", "int2+zstd"),
    "once-topk": _scheme("once", "topk:ratio=0.1+zstd"),
    "once-lowrank-0.05": _scheme("once", "lowrank:error=0.05"),
    "once-lowrank-0.1": _scheme("once", "lowrank:error=0.1"),
    "once-lowrank-0.2": _scheme("once", "lowrank:error=0.2"),
    "once-lowrank-0.3": _scheme("once", "lowrank:error=0.3"),
    "once-random-half": _reduced("random"),
    "once-content-half": _reduced("content"),
    "once-merge-half": _reduced("merge"),
    "trained-fp32": Scheme(
        "float32 both ways",
        {**EXACT, **TRAINABLE, "activations.mode": "every-step", "codecs.activation_gradients": "identity"},
    ),
    "trained-int8": _trained("every-step", "int8+zstd"),
    "trained-lowrank-0.1": _trained("every-step", "lowrank:error=0.1"),
    "trained-lowrank-0.1-delta": _trained("delta", "lowrank:error=0.1"),
}


def train(name: str, seed: int, threads: int) -> dict[str, Any]:
    """Train once, evaluate on all test samples, and count every byte of every agent's connection."""
    torch.set_num_threads(threads)
    scheme = SCHEMES[name]
    settings = load_run_settings(RUN, {**COMMON, **scheme.settings, "run.seed": seed})
    started_at = time.perf_counter()
    network = VirtualNetwork()
    built = build(settings, seed)
    manifest = make_manifest(settings, built, run_id=f"compression-{seed}")
    book = RunBook(manifest, built.num_tokenizer_parameters)
    transport = network.transport("worker-0")
    store = MemoryActivationStore()
    worker = WorkerRuntime(
        transport,
        make_session(settings, manifest, "worker-0", incarnation=network.next_incarnation(), lease_seed=seed),
        make_engine(settings, built),
        built.tokenizer_file,
        book,
        options=WorkerOptions(claim_s=0.1),
        clock=network.clock,
        keeper=StoreKeeper(None if settings.activations.mode == "every-step" else lambda _: store),
    )
    network.add("worker-0", worker, transport, lambda: worker.is_finished)
    agents = [
        network.add_agent(
            f"clinic/{index:02d}", open_dataset("demo:digits", shard=Shard(index, NUM_AGENTS), seed=seed, options={})
        )
        for index in range(NUM_AGENTS)
    ]
    network.run(lambda: worker.is_finished and all(agent.is_finished for agent in agents), max_virtual_s=1e7)
    reports = [telemetry for _, telemetry in book.latest()]
    rows: dict[str, dict[str, int]] = {}
    for report in reports:
        for row in report.traffic:
            entry = rows.setdefault(f"{row.direction.value} {row.kind} {row.codec}".strip(), {})
            for what in ("messages", "raw_bytes", "payload_bytes", "wire_bytes"):
                entry[what] = entry.get(what, 0) + getattr(row, what)
    finals = [entry for report in reports for entry in report.evaluations if entry.final]
    return {
        "scheme": name,
        "seed": seed,
        "settings": {key: str(value) for key, value in {**COMMON, **scheme.settings}.items()},
        "accuracy": _accuracy(finals, "audio+image"),
        "num_test": sum(entry.sums.num_samples for entry in finals if entry.given == "audio+image"),
        "num_train": sum(report.samples for report in reports) // EPOCHS,
        "up_bytes": sum(agent._transport.wire.sent_bytes for agent in agents),
        "down_bytes": sum(agent._transport.wire.received_bytes for agent in agents),
        "rows": rows,
        "seconds": round(time.perf_counter() - started_at, 1),
        "raw_up_bytes": sum(
            row.raw_bytes for report in reports for row in report.traffic if row.direction is Direction.UP
        ),
    }


def _accuracy(finals: list[Evaluation], given: str) -> float:
    chosen = [entry.sums for entry in finals if entry.given == given]
    return sum(sums.num_correct for sums in chosen) / sum(sums.num_samples for sums in chosen)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/compression/training.jsonl"))
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if arguments.output.exists():
        for line in arguments.output.read_text().splitlines():
            result = json.loads(line)
            done.add((result["scheme"], result["seed"]))
    wanted = [
        (scheme, seed)
        for seed in range(arguments.seeds)
        for scheme in arguments.schemes.split(",")
        if (scheme, seed) not in done
    ]
    with ProcessPoolExecutor(arguments.processes) as pool:
        futures = [pool.submit(train, scheme, seed, 1) for scheme, seed in wanted]
        for future in futures:
            result = future.result()
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            total = result["up_bytes"] + result["down_bytes"]
            print(
                f"{result['scheme']:>20} seed {result['seed']}: accuracy {result['accuracy']:.4f}, {total:,} B, "
                f"{result['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
