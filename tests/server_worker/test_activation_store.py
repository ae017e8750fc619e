from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cutlayer.server_worker.activation_store import ActivationStore, MemoryActivationStore

SAMPLE_BYTES = 3 * 4 * 4  # of tokens() with one modality


def numbers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def tokens(b: int, seed: int = 0, *, K: int = 3, D: int = 4) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(b, K, D)).astype(np.float32)


def test_what_was_put_is_fetched_bit_for_bit_in_the_order_asked_for() -> None:
    store: ActivationStore = MemoryActivationStore()
    put = tokens(3)
    put[0, 0] = [-0.0, 1e-45, np.finfo(np.float32).max, -1e-38]
    assert store.put("a", numbers(7, -1, 2**62), {"image": put}).all()
    fetched = store.get("a", numbers(2**62, 7, -1), ["image"])
    assert fetched.tokens["image"].tobytes() == put[[2, 0, 1]].tobytes()
    assert fetched.positions == {}
    assert not fetched.is_missing.any()
