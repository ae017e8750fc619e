"""What a limit of the uplink, a ladder of codecs and a limit of bytes a sample do to one agent of the digits run.

Agent, messages and codecs are the real ones; the network and the clock are virtual, and the worker computes nothing.
So the time is what the uplink alone takes, and the bytes are those of a run. Prints two Markdown tables: the codecs as
the guard sees them, and the runs.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cutlayer.broker.messages import Telemetry
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.codec_trials import CodecTrials
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.partition import Shard
from cutlayer.edge_agent.rate_text import parse_rate
from cutlayer.server_worker.activation_store import MemoryActivationStore
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_parts import make_manifest, make_session
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import RunSettings, load_run_settings
from cutlayer.server_worker.store_keeper import StoreKeeper
from cutlayer.server_worker.worker_options import WorkerOptions
from cutlayer.simulation.virtual import VirtualNetwork

TRIED = ("int8+zstd", "int4+zstd", "int2+zstd", "lowrank:error=0.05", "lowrank:error=0.1", "lowrank:error=0.2")


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        mode: Of the activations.
        limit: Of the uplink; empty for none.
        ladder: Codecs below the run's own.
        guard: `max_relative_error`.
        bytes_per_sample: The manifest's limit; None for none.
    """

    mode: str
    limit: str
    ladder: tuple[str, ...]
    guard: float = 0.2
    bytes_per_sample: float | None = None


def settings_of(run: Path, epochs: int, case: Case) -> RunSettings:
    """Return the settings of a case."""
    return load_run_settings(
        run,
        {
            "run.epochs": epochs,
            "activations.mode": case.mode,
            "budget.ladder": list(case.ladder),
            "budget.max_relative_error": case.guard,
            "budget.bytes_per_sample": case.bytes_per_sample,
        },
    )


def run_case(settings: RunSettings, built: BuiltModel, dataset: Dataset, limit: str) -> tuple[float, Telemetry]:
    """Let one agent train to the end; return the seconds that it took, and its last report."""
    network = VirtualNetwork()
    manifest = make_manifest(settings, built, run_id="budget-0")
    session = make_session(settings, manifest, "w0", incarnation=network.next_incarnation(), lease_seed=0)
    transport, store = network.transport("w0"), MemoryActivationStore()
    worker = WorkerRuntime(
        transport,
        session,
        CountingEngine(settings.task.num_outputs),
        built.tokenizer_file,
        RunBook(manifest, built.num_tokenizer_parameters),
        options=WorkerOptions(claim_s=0.1),
        clock=network.clock,
        keeper=StoreKeeper(None if settings.activations.mode == "every-step" else lambda _: store),
    )
    network.add("w0", worker, transport, lambda: worker.is_finished)
    rate = parse_rate(limit, name="--limits") if limit else None
    agent = network.add_agent("clinic/0", dataset, max_uplink_bytes_per_s=rate)
    network.run(lambda: worker.is_finished and agent.is_finished, max_virtual_s=1e6)
    assert agent.reporter.last is not None
    return network.clock(), agent.reporter.last


def print_codecs(settings: RunSettings, built: BuiltModel, dataset: Dataset) -> None:
    """Print sizes and errors of codecs as an agent measures them on its first microbatch."""
    client = ClientSide(make_manifest(settings, built, run_id="budget-0"), built.tokenizer_file, dataset)
    indices = np.arange(settings.run.microbatch_samples)
    tokens = client.tokenize("train", indices, tuple(sorted(settings.modalities))).tokens
    trials = CodecTrials(TRIED)
    trials.take([array for _, array in tokens])
    print("| codec | bytes a sample | relative error |\n| --- | --- | --- |")
    for index, codec in enumerate(TRIED):
        print(f"| `{codec}` | {trials.sample_bytes(index):,.0f} | {trials.error(index):.3f} |")
    print()


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path(__file__).with_name("digits_int8.toml"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--shard", default="0/4")
    parser.add_argument("--limits", nargs="*", default=["256kbit", "5mbit"])
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    ladder = ("int4+zstd", "lowrank:error=0.1", "lowrank:error=0.2")
    cases = [
        Case(mode, limit, codecs, guard)
        for limit in options.limits
        for mode in ("every-step", "once")
        for codecs, guard in (((), 0.2), (ladder, 0.2), (ladder, 0.1))
    ]
    cases += [Case(mode, "", ladder, 0.2, limit) for mode, limit in (("every-step", 1_500.0), ("once", 700.0))]
    first = settings_of(options.run, options.epochs, cases[0])
    built = build(first, first.run.seed)
    dataset = open_dataset("demo:digits", shard=Shard.parse(options.shard), seed=first.run.seed)
    print_codecs(first, built, dataset)
    num_passes = options.epochs * dataset.num_samples("train")
    print(
        "| activations | --max-uplink | ladder | guard | bytes_per_sample | time | sent | B/sample | changes | waited |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in cases:
        seconds, last = run_case(settings_of(options.run, options.epochs, case), built, dataset, case.limit)
        print(
            f"| {case.mode} | {case.limit or '-'} | {'yes' if case.ladder else 'no'} | {case.guard:g} | "
            f"{case.bytes_per_sample or '-'} | {seconds:,.0f} s | {last.wire_sent_bytes / 1e6:.2f} MB | "
            f"{last.wire_sent_bytes / num_passes:,.0f} | {last.codec_changes} | {last.paced_s:,.0f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
