"""A process of its own that writes to a store on disk and reads from it, checking every value: to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cutlayer.server_worker.disk_store import DiskActivationStore

__all__ = ["AGENT", "NUM_SAMPLES", "RUN", "content", "wrong_samples"]

RUN = "shared"
AGENT = "everybody's"
NUM_SAMPLES = 200
MICROBATCH = 16
ROUNDS = 60


def content(number: int, visits: int) -> NDArray[np.float32]:
    """What whoever puts a sample for the nth time puts: (16, 128), 8 kB."""
    return np.random.default_rng((number, visits)).normal(size=(16, 128)).astype(np.float32)


def wrong_samples(store: DiskActivationStore, samples: NDArray[np.int64]) -> tuple[int, int]:
    """Return how many samples were found, and how many of them are not what somebody put."""
    fetched = store.get(AGENT, samples, ["image"])
    found = np.flatnonzero(~fetched.is_missing)
    wrong = [
        row
        for row in found
        if not np.array_equal(fetched.tokens["image"][row], content(int(samples[row]), int(fetched.visits[row])))
    ]
    return len(found), len(wrong)


def main() -> None:
    """Write and read for some rounds: `store_process.py FOLDER SEED`; prints a line for each round."""
    store = DiskActivationStore(Path(sys.argv[1]), RUN, max_bytes=1 << 30)
    rng = np.random.default_rng(int(sys.argv[2]))
    num_found = num_kept = 0
    for _ in range(ROUNDS):
        samples = rng.choice(NUM_SAMPLES, MICROBATCH, replace=False).astype(np.int64)
        visits = rng.integers(0, 4, MICROBATCH).astype(np.uint8)
        put = np.stack([content(int(number), int(visit)) for number, visit in zip(samples, visits, strict=True)])
        num_kept += int(store.put(AGENT, samples, {"image": put}, visits=visits).sum())
        found, wrong = wrong_samples(store, rng.choice(NUM_SAMPLES, MICROBATCH, replace=False).astype(np.int64))
        num_found += found
        if wrong:
            sys.exit(f"{wrong} samples are not what was put")
        print(f"{store.id} {num_kept} {num_found}", flush=True)
    store.close()


if __name__ == "__main__":
    main()
