"""The agent's books of what stores have."""

from __future__ import annotations

import numpy as np

from cutlayer.edge_agent.kept_samples import MAX_STORES, KeptSamples


def numbers(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def test_nothing_is_known_of_a_store_at_first() -> None:
    assert KeptSamples(5).known("a", numbers(0, 4)).tolist() == [False, False]


def test_each_store_has_books_of_its_own() -> None:
    kept = KeptSamples(5)
    kept.add("a", numbers(1, 2))
    kept.add("b", numbers(2))
    kept.remove("a", numbers(2))
    kept.remove("c", numbers(2))
    assert kept.known("a", numbers(1, 2)).tolist() == [True, False]
    assert kept.known("b", numbers(1, 2)).tolist() == [False, True]


def test_what_is_returned_is_no_view_of_the_books() -> None:
    kept = KeptSamples(5)
    kept.add("a", numbers(1))
    kept.known("a", numbers(1))[:] = False
    assert kept.known("a", numbers(1)).all()


def test_books_do_not_grow_with_the_names_that_workers_think_up() -> None:
    kept = KeptSamples(5)
    for index in range(MAX_STORES + 1):
        kept.add(f"store-{index}", numbers(1))
    assert not kept.known("store-0", numbers(1)).any(), "the oldest is forgotten"
    assert all(kept.known(f"store-{index + 1}", numbers(1)).all() for index in range(MAX_STORES))
