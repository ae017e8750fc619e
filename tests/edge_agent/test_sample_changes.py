"""What an agent remembers of its samples, and when it sends a change rather than the whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.sample_refs import checksum_of, unpack_bases
from cutlayer.edge_agent.sample_changes import SampleChanges, SentChanges

RNG = np.random.default_rng(0)
TOKENS = [("audio", RNG.normal(size=(2, 3, 4)).astype(np.float32)), ("image", np.ones((2, 1, 4), np.float32))]
SAMPLES = np.array([1, 3])
KEPT = np.zeros(2, bool)
CODEC = "int4"


def sent_by(changes: SampleChanges, store: str = "a", under_way: tuple[SentChanges, ...] = ()) -> SentChanges:
    return changes.encode(store, SAMPLES, TOKENS, CODEC, under_way)[2]


def visits(changes: SampleChanges, store: str = "a", under_way: tuple[SentChanges, ...] = ()) -> list[int]:
    _, bases, _ = changes.encode(store, SAMPLES, TOKENS, CODEC, under_way)
    return list(unpack_bases(bases, 2)[0].tolist())


def after_one_visit(unkept_B: NDArray[np.bool_] = KEPT) -> SampleChanges:
    changes = SampleChanges(5)
    assert visits(changes) == [0, 0]
    changes.answered(sent_by(changes), "a", unkept_B)
    return changes


def test_the_second_visit_sends_a_change_and_says_to_what() -> None:
    changes = after_one_visit()
    assert visits(changes) == [1, 1]
    changes.answered(sent_by(changes), "a", KEPT)
    assert visits(changes) == [2, 2]


def test_each_change_brings_the_reconstruction_nearer() -> None:
    changes, errors = SampleChanges(5), []
    for _ in range(3):
        sent = sent_by(changes)
        changes.answered(sent, "a", KEPT)
        exact = np.concatenate([tokens_BKD for _, tokens_BKD in TOKENS], axis=1)
        errors.append(float(np.abs(sent.reconstruction_BTD - exact).max()))
    assert errors[0] > 4 * errors[1] > 0.0
    assert errors[1] >= errors[2]


def test_the_checksum_is_of_what_the_receiver_will_have() -> None:
    changes = after_one_visit()
    _, bases, sent = changes.encode("a", SAMPLES, TOKENS, CODEC, ())
    parts = [sent.reconstruction_BTD[:, :3], sent.reconstruction_BTD[:, 3:]]
    assert unpack_bases(bases, 2)[1] == checksum_of(parts)


def test_a_reconstruction_counts_when_it_is_answered_and_no_earlier() -> None:
    changes = after_one_visit()
    sent = sent_by(changes)
    assert visits(changes, under_way=(sent,)) == [0, 0], "nobody knows which of the two the worker has"
    assert visits(changes) == [1, 1]


def test_what_a_worker_does_not_keep_goes_whole() -> None:
    assert visits(after_one_visit(np.array([True, False]))) == [0, 1]


def test_what_a_store_lacks_goes_whole_and_is_counted_anew() -> None:
    changes = after_one_visit()
    changes.answered(sent_by(changes), "a", KEPT)
    changes.lacks("a", SAMPLES[:1])
    assert visits(changes) == [0, 2]
    changes.answered(sent_by(changes), "a", KEPT)
    assert visits(changes) == [1, 3]


def test_another_store_has_none_of_it_and_the_last_one_counts() -> None:
    changes = after_one_visit()
    assert visits(changes, "b") == [0, 0]
    changes.answered(sent_by(changes, "b"), "b", KEPT)
    assert visits(changes, "a") == [0, 0], "its reconstruction is not what is remembered any more"
    assert visits(changes, "b") == [1, 1]


def test_each_256th_visit_goes_whole() -> None:
    changes, found = SampleChanges(5), []
    for _ in range(258):
        found.append(visits(changes)[0])
        changes.answered(sent_by(changes), "a", KEPT)
    assert found == [*range(256), 0, 1]


def test_samples_beyond_the_memory_go_whole() -> None:
    changes = SampleChanges(5, max_bytes=400)
    changes.answered(sent_by(changes), "a", KEPT)
    assert visits(changes) == [1, 0]
