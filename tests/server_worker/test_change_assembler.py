"""Microbatches that came as changes: made whole from the base that was meant, or asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Activations, EncodedTensor, Mode
from cutlayer.broker.sample_refs import pack_bases, pack_mask, pack_numbers
from cutlayer.compression import codec_from_name
from cutlayer.compression.delta import Base, encode_change
from cutlayer.server_worker.activation_store import MemoryActivationStore
from cutlayer.server_worker.assembled import Assembled, Lacking
from cutlayer.server_worker.change_assembler import assemble_changes
from support.small_side import WIDTH, small_manifest

RNG = np.random.default_rng(0)
NAMES = ("audio", "image")
SAMPLES = np.array([2, 5])
SHAPE = (2, 4, WIDTH)
FIRST = {name: RNG.normal(size=SHAPE).astype(np.float32) for name in NAMES}
SECOND = {name: (tokens + RNG.normal(size=SHAPE) / 8).astype(np.float32) for name, tokens in FIRST.items()}


def manifest() -> Manifest:
    document: dict[str, Any] = small_manifest().model_dump()
    return Manifest.model_validate({**document, "activations": "delta"})


def message_of(
    tokens: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]],
    visits: tuple[int, int] = (0, 0),
    bases: Mapping[str, Base] | None = None,
) -> tuple[Activations, dict[str, Base]]:
    """Return a message, and what the worker is to have afterwards."""
    tensors, whole = [], {}
    for name in NAMES:
        base = np.zeros(SHAPE, np.float16) if bases is None else bases[name]
        data, whole[name] = encode_change(codec_from_name("int4"), tokens[name], base)
        tensors.append((name, EncodedTensor("int4", SHAPE, data)))
    packed = pack_bases(np.array(visits, np.uint8), list(whole.values()))
    message = Activations(1, 0, Mode.TRAIN, 2, tuple(tensors), samples=pack_numbers(SAMPLES), bases=packed)
    return message, whole


def assemble(store: MemoryActivationStore | None, message: Activations) -> Assembled | Lacking:
    return assemble_changes(store, manifest(), "site/0", message)


def assert_has(made: Assembled | Lacking, whole: Mapping[str, Base]) -> None:
    assert isinstance(made, Assembled)
    for name in NAMES:
        np.testing.assert_array_equal(made.tokens[name], whole[name].astype(np.float32))
    assert not any(made.unkept)


def test_a_change_is_added_to_what_the_store_has() -> None:
    store = MemoryActivationStore()
    first, base = message_of(FIRST)
    assert_has(assemble(store, first), base)
    second, whole = message_of(SECOND, (1, 1), base)
    assert_has(assemble(store, second), whole)
    fetched = store.get("site/0", SAMPLES, NAMES)
    assert fetched.visits.tolist() == [2, 2]
    np.testing.assert_array_equal(fetched.tokens["image"], whole["image"].astype(np.float32))


def test_a_message_that_comes_again_gives_the_same_and_is_not_added_twice() -> None:
    store = MemoryActivationStore()
    first, base = message_of(FIRST)
    assemble(store, first)
    second, whole = message_of(SECOND, (1, 1), base)
    for _ in range(3):
        assert_has(assemble(store, second), whole)
    assert store.get("site/0", SAMPLES, NAMES).visits.tolist() == [2, 2]


def test_a_change_to_what_the_store_lacks_is_asked_for() -> None:
    store = MemoryActivationStore()
    first, base = message_of(FIRST)
    assemble(store, first)
    second, _ = message_of(SECOND, (1, 7), base)
    assert assemble(store, second) == Lacking(pack_mask(np.array([False, True])))
    assert assemble(MemoryActivationStore(), second) == Lacking(pack_mask(np.array([True, True])))
    assert assemble(None, second) == Lacking(pack_mask(np.array([True, True])))


def test_a_base_of_the_right_count_and_other_values_is_found_out() -> None:
    store = MemoryActivationStore()
    other, _ = message_of(SECOND)
    assemble(store, other)
    _, base = message_of(FIRST)
    second, _ = message_of(SECOND, (1, 1), base)
    assert assemble(store, second) == Lacking(pack_mask(np.array([True, True])))
    assert store.get("site/0", SAMPLES, NAMES).visits.tolist() == [1, 1], "nothing wrong is kept"


def test_what_came_whole_and_decodes_otherwise_here_is_used_and_not_kept() -> None:
    store = MemoryActivationStore()
    first, whole = message_of(FIRST)
    wrong = pack_bases(np.zeros(2, np.uint8), [FIRST["audio"].astype(np.float16), FIRST["image"].astype(np.float16)])
    made = assemble(store, Activations(1, 0, Mode.TRAIN, 2, first.tensors, samples=first.samples, bases=wrong))
    assert isinstance(made, Assembled)
    np.testing.assert_array_equal(made.tokens["audio"], whole["audio"].astype(np.float32))
    assert made.unkept == pack_mask(np.array([True, True]))
    assert store.num_samples == 0


def test_without_a_store_what_came_whole_is_used() -> None:
    first, whole = message_of(FIRST)
    assert_has(assemble(None, first), whole)
