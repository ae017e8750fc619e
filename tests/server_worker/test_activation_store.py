"""What every store promises: the twin in memory and the one on disk pass the same tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.server_worker.activation_file import PAGE_BYTES
from cutlayer.server_worker.activation_store import ActivationStore, MemoryActivationStore
from cutlayer.server_worker.disk_store import DiskActivationStore
from support.manual_clock import ManualClock

IDLE_S = 100.0
STANDING = ManualClock()
K, D = 16, 128  # 8,192 B a sample: a page of the file and a bit


class MakeStore(Protocol):
    def __call__(self, *, max_bytes: int = 1 << 30, clock: Callable[[], float] = ...) -> ActivationStore: ...


def in_memory(*, max_bytes: int = 1 << 30, clock: Callable[[], float] = STANDING) -> ActivationStore:
    return MemoryActivationStore(max_bytes, idle_s=IDLE_S, clock=clock)


def on_disk(folder: Path, *, max_bytes: int = 1 << 30, clock: Callable[[], float] = STANDING) -> ActivationStore:
    return DiskActivationStore(folder, "run", max_bytes=max_bytes, idle_s=IDLE_S, clock=clock)


@pytest.fixture(params=["memory", "disk"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    return in_memory if request.param == "memory" else partial(on_disk, tmp_path / "activations")


def numbers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def tokens(b: int, seed: int = 0, *, width: int = D) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(b, K, width)).astype(np.float32)


def positions(b: int, seed: int = 0) -> NDArray[np.intp]:
    return np.sort(np.random.default_rng(seed).integers(0, 197, size=(b, K)).astype(np.intp))


def fill(store: ActivationStore, agent: str, b: int) -> int:
    """Put samples one by one until one is declined, and return how many were kept."""
    for number in range(b):
        if not store.put(agent, numbers(number), {"image": tokens(1, number)}).all():
            return number
    return b


def test_what_was_put_is_fetched_bit_for_bit_in_the_order_asked_for(make_store: MakeStore) -> None:
    store, put = make_store(), tokens(3)
    put[0, 0, :4] = np.array([-0.0, 1e-45, np.finfo(np.float32).max, -1e-38], np.float32)
    assert store.put("a", numbers(7, -1, 2**62), {"image": put}).all()
    put_bytes = put[[2, 0, 1]].tobytes()
    put[:] = 0  # the store has its own
    fetched = store.get("a", numbers(2**62, 7, -1), ["image"])
    assert fetched.tokens["image"].tobytes() == put_bytes
    assert fetched.positions == {}
    assert not fetched.is_missing.any()


def test_visits_and_positions_come_back(make_store: MakeStore) -> None:
    store = make_store()
    store.put(
        "a",
        numbers(1, 2),
        {"image": tokens(2), "audio": tokens(2, 1)},
        positions={"image": positions(2)},
        visits=np.array([0, 255], np.uint8),
    )
    fetched = store.get("a", numbers(2, 1), ["image", "audio"])
    assert fetched.visits.tolist() == [255, 0]
    assert fetched.positions.keys() == {"image"}
    assert np.array_equal(fetched.positions["image"], positions(2)[::-1])
    assert fetched.positions["image"].dtype == np.intp


def test_missing_samples_are_zeros(make_store: MakeStore) -> None:
    store = make_store()
    store.put("a", numbers(1), {"image": tokens(1)}, positions={"image": positions(1)}, visits=np.ones(1, np.uint8))
    fetched = store.get("a", numbers(5, 1, 6), ["image"])
    assert fetched.is_missing.tolist() == [True, False, True]
    assert fetched.visits.tolist() == [0, 1, 0]
    assert not fetched.tokens["image"][[0, 2]].any()
    assert not fetched.positions["image"][[0, 2]].any()
    assert np.array_equal(fetched.tokens["image"][1], tokens(1)[0])


def test_where_all_are_missing_the_shape_is_empty(make_store: MakeStore) -> None:
    fetched = make_store().get("a", numbers(1, 2), ["image", "audio"])
    assert fetched.is_missing.all()
    assert {name: values.shape for name, values in fetched.tokens.items()} == {"image": (2, 0, 0), "audio": (2, 0, 0)}


def test_an_empty_microbatch_is_fine(make_store: MakeStore) -> None:
    store = make_store()
    assert store.put("a", numbers(), {"image": tokens(0)}).shape == (0,)
    assert store.get("a", numbers(), ["image"]).is_missing.shape == (0,)


def test_agents_do_not_see_each_others_samples(make_store: MakeStore) -> None:
    store = make_store()
    store.put("a", numbers(1), {"image": tokens(1, 1)})
    store.put("b", numbers(1), {"image": tokens(1, 2)})
    assert np.array_equal(store.get("a", numbers(1), ["image"]).tokens["image"], tokens(1, 1))
    assert np.array_equal(store.get("b", numbers(1), ["image"]).tokens["image"], tokens(1, 2))
    assert store.num_samples == 2


def test_one_modality_of_several_may_be_fetched(make_store: MakeStore) -> None:
    store = make_store()
    store.put("a", numbers(1), {"image": tokens(1, 1), "audio": tokens(1, 2, width=8)})
    fetched = store.get("a", numbers(1), ["audio"])
    assert fetched.tokens.keys() == {"audio"}
    assert np.array_equal(fetched.tokens["audio"], tokens(1, 2, width=8))


def test_a_sample_that_lacks_a_wanted_modality_is_missing(make_store: MakeStore) -> None:
    store = make_store()
    store.put("a", numbers(1), {"audio": tokens(1)})
    store.put("a", numbers(2), {"audio": tokens(1), "image": tokens(1)})
    assert store.get("a", numbers(1, 2), ["audio", "image"]).is_missing.tolist() == [True, False]


def test_a_sample_is_replaced_with_all_its_modalities(make_store: MakeStore) -> None:
    store = make_store()
    store.put("a", numbers(1), {"audio": tokens(1), "image": tokens(1)}, positions={"image": positions(1)})
    store.put("a", numbers(1), {"image": tokens(1, 1)}, visits=np.array([3], np.uint8))
    assert store.get("a", numbers(1), ["audio"]).is_missing.all()
    fetched = store.get("a", numbers(1), ["image"])
    assert np.array_equal(fetched.tokens["image"], tokens(1, 1))
    assert fetched.positions == {}
    assert fetched.visits.tolist() == [3]
    assert store.num_samples == 1


def test_samples_of_another_shape_are_missing_and_the_commonest_shape_counts(make_store: MakeStore) -> None:
    store = make_store()
    store.put("a", numbers(1), {"image": tokens(1)[:, :5]})
    store.put("a", numbers(2, 3), {"image": tokens(2)})
    store.put("a", numbers(4), {"image": tokens(1)}, positions={"image": positions(1)})
    fetched = store.get("a", numbers(1, 2, 3, 4), ["image"])
    assert fetched.is_missing.tolist() == [True, False, False, False]
    assert np.array_equal(fetched.positions["image"][1], np.arange(tokens(1).shape[1]))
    assert np.array_equal(fetched.positions["image"][3], positions(1)[0])
    assert fetched.tokens["image"].shape == (4, K, D)


def test_of_a_number_that_comes_twice_the_last_counts(make_store: MakeStore) -> None:
    store, put = make_store(), tokens(3)
    assert store.put("a", numbers(1, 2, 1), {"image": put}).all()
    fetched = store.get("a", numbers(1, 1), ["image"])
    assert np.array_equal(fetched.tokens["image"], put[[2, 2]])
    put[2, 0, 0] = np.nan
    assert store.put("a", numbers(1, 2, 1), {"image": put}).tolist() == [False, True, False]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_is_declined_and_the_one_before_it_is_gone(
    make_store: MakeStore, value: float
) -> None:
    store, put = make_store(), tokens(2)
    store.put("a", numbers(1, 2), {"image": put})
    put[1, 3, 3] = value
    assert store.put("a", numbers(1, 2), {"image": put}).tolist() == [True, False]
    assert store.get("a", numbers(1, 2), ["image"]).is_missing.tolist() == [False, True]


def test_forgetting_an_agent_leaves_the_others(make_store: MakeStore) -> None:
    store = make_store()
    store.put("a", numbers(1), {"image": tokens(1)})
    store.put("b", numbers(1), {"image": tokens(1)})
    store.forget("a")
    store.forget("never seen")
    assert store.get("a", numbers(1), ["image"]).is_missing.all()
    assert not store.get("b", numbers(1), ["image"]).is_missing.any()
    assert store.num_samples == 1


def test_after_delete_nothing_is_kept_and_all_is_missing(make_store: MakeStore) -> None:
    store = make_store()
    store.put("a", numbers(1), {"image": tokens(1)})
    store.delete()
    assert not store.put("a", numbers(2), {"image": tokens(1)}).any()
    assert store.get("a", numbers(1, 2), ["image"]).is_missing.all()
    assert (store.num_samples, store.stored_bytes) == (0, 0)
    store.forget("a")
    store.delete()
    store.close()


def test_ids_are_short_and_differ(make_store: MakeStore) -> None:
    first = make_store()
    first.delete()
    second = make_store()
    assert first.id != second.id
    assert max(len(first.id), len(second.id)) <= 32


def test_a_full_store_declines_and_keeps_what_it_has(make_store: MakeStore) -> None:
    store = make_store(max_bytes=40 * PAGE_BYTES)
    num_kept = fill(store, "a", 100)
    assert 5 < num_kept <= 40
    assert store.stored_bytes <= 40 * PAGE_BYTES
    declined = store.put("a", np.arange(100, 110), {"image": tokens(10)})
    assert not declined.any()
    fetched = store.get("a", np.arange(num_kept), ["image"])
    assert not fetched.is_missing.any()
    for number in range(num_kept):
        assert np.array_equal(fetched.tokens["image"][number], tokens(1, number)[0])


def test_a_full_store_declines_for_other_agents_too_while_the_first_is_at_work(make_store: MakeStore) -> None:
    clock = ManualClock()
    store = make_store(max_bytes=40 * PAGE_BYTES, clock=clock)
    num_kept = fill(store, "a", 100)
    clock.now_s = 0.9 * IDLE_S
    assert not store.get("a", numbers(0), ["image"]).is_missing.any()  # reading counts, too
    clock.now_s = 1.5 * IDLE_S
    assert not store.put("b", numbers(1), {"image": tokens(1)}).any()
    assert not store.get("a", np.arange(num_kept), ["image"]).is_missing.any()


def test_an_idle_agent_makes_room_but_no_more_than_needed(make_store: MakeStore) -> None:
    clock = ManualClock()
    store = make_store(max_bytes=200 * PAGE_BYTES, clock=clock)
    num_kept = fill(store, "a", 300)
    clock.now_s = IDLE_S
    assert store.put("b", np.arange(4), {"image": tokens(4)}).all()
    assert not store.get("b", np.arange(4), ["image"]).is_missing.any()
    num_left = num_kept - int(store.get("a", np.arange(num_kept), ["image"]).is_missing.sum())
    assert num_kept - 20 <= num_left < num_kept
    assert store.stored_bytes <= 200 * PAGE_BYTES


def test_the_agent_that_was_idle_for_longest_makes_room_first(make_store: MakeStore) -> None:
    clock = ManualClock()
    store = make_store(max_bytes=100 * PAGE_BYTES, clock=clock)
    store.put("late", np.arange(10), {"image": tokens(10)})
    store.put("early", np.arange(10), {"image": tokens(10)})
    clock.now_s = 5.0
    store.put("late", np.arange(10), {"image": tokens(10)})
    fill(store, "full", 300)
    clock.now_s = 5.0 + IDLE_S
    assert store.put("new", numbers(1), {"image": tokens(1)}).all()
    assert store.get("early", np.arange(10), ["image"]).is_missing.any()
    assert not store.get("late", np.arange(10), ["image"]).is_missing.any()


def test_an_agent_does_not_make_room_for_itself_however_long_it_was_away(make_store: MakeStore) -> None:
    clock = ManualClock()
    store = make_store(max_bytes=40 * PAGE_BYTES, clock=clock)
    num_kept = fill(store, "a", 100)
    clock.now_s = 10 * IDLE_S
    assert not store.put("a", numbers(1000), {"image": tokens(1)}).any()
    assert not store.get("a", np.arange(num_kept), ["image"]).is_missing.any()


def test_a_full_store_still_replaces_what_it_has(make_store: MakeStore) -> None:
    store = make_store(max_bytes=40 * PAGE_BYTES)
    num_kept = fill(store, "a", 100)
    held = np.arange(num_kept - 4)  # room for what the estimate leaves free
    for visit in range(3):
        put = tokens(len(held), visit)
        assert store.put("a", held, {"image": put}).all()
        assert np.array_equal(store.get("a", held, ["image"]).tokens["image"], put)
    assert store.stored_bytes <= 40 * PAGE_BYTES


def test_a_replacement_that_does_not_fit_leaves_neither_the_old_nor_the_new(make_store: MakeStore) -> None:
    store = make_store(max_bytes=40 * PAGE_BYTES)
    fill(store, "a", 100)
    assert not store.put("a", numbers(0), {"image": tokens(1, width=128 * 10)}).any()
    assert store.get("a", numbers(0), ["image"]).is_missing.all()


def test_hits_are_in_proportion_to_the_room(make_store: MakeStore) -> None:
    """Each sample once an epoch in random order, with room for about half: a store of the latest ones has none left."""
    store = make_store(max_bytes=40 * PAGE_BYTES)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(4):
        num_hits = 0
        for number in rng.permutation(60).astype(np.int64):
            if store.get("a", numbers(int(number)), ["image"]).is_missing.any():
                store.put("a", numbers(int(number)), {"image": tokens(1, int(number))})
            else:
                num_hits += 1
        shares.append(num_hits / 60)
    assert shares[0] == 0
    assert shares[1] == shares[2] == shares[3] == store.num_samples / 60 > 0.3


def test_what_does_not_fit_together_is_refused(make_store: MakeStore) -> None:
    store, put = make_store(), {"image": tokens(2)}
    with pytest.raises(ValueError, match="samples"):
        store.put("a", np.arange(2, dtype=np.int32), put)
    with pytest.raises(ValueError, match="no modality"):
        store.put("a", np.arange(2), {})
    with pytest.raises(ValueError, match="tokens of image"):
        store.put("a", np.arange(3), put)
    with pytest.raises(ValueError, match="tokens of image"):
        store.put("a", np.arange(2), {"image": tokens(2).astype(np.float64)})
    with pytest.raises(ValueError, match="positions of audio"):
        store.put("a", np.arange(2), put, positions={"audio": positions(2)})
    with pytest.raises(ValueError, match="positions of image"):
        store.put("a", np.arange(2), put, positions={"image": positions(2)[:, 1:]})
    with pytest.raises(ValueError, match="is negative"):
        store.put("a", np.arange(2), put, positions={"image": positions(2) - 500})
    with pytest.raises(ValueError, match="visits"):
        store.put("a", np.arange(2), put, visits=np.zeros(3, np.uint8))
    assert store.num_samples == 0
