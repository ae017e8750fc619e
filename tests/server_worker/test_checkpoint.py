from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cutlayer.broker.errors import CheckpointError
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointNotSaved, CheckpointStore
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.parameters import EngineState
from server_worker.small_model import output_gradient, small_engine, train_item


def checkpoint(version: int, num_values: int = 3) -> Checkpoint:
    weights = {
        "head.weight": torch.full((2, num_values), float(version)),
        "head.bias": torch.zeros(2, dtype=torch.float64),
    }
    optimizer = {"head.weight/step": torch.tensor(float(version)), "head.weight/exp_avg": torch.ones(2, num_values)}
    return Checkpoint(EngineState(version, weights, optimizer), bytes([version]) * 5, {"windows": version})


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def no_file_over(num_bytes: int) -> Iterator[None]:
    """A disk that is full, as far as this process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    store, saved = CheckpointStore(tmp_path / "run"), checkpoint(7)
    path = store.save(saved)
    restored = store.load_latest()
    assert restored.path == path
    assert restored.passed_over == ()
    assert restored.checkpoint.state.version == 7
    assert same(restored.checkpoint.state.weights, saved.state.weights)
    assert same(restored.checkpoint.state.optimizer, saved.state.optimizer)
    assert restored.checkpoint.ledger == saved.ledger
    assert restored.checkpoint.meta == {"windows": 7}


def test_an_optimizer_without_state_is_read_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(Checkpoint(EngineState(0, checkpoint(0).state.weights, {})))
    assert store.load_latest().checkpoint.state.optimizer == {}


def test_the_newest_three_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for version in range(5):
        store.save(checkpoint(version))
    assert folders(tmp_path) == [f"checkpoint-{number:010d}" for number in (2, 3, 4)]
    assert store.load_latest().checkpoint.state.version == 4


def test_the_same_version_may_be_saved_twice(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.save(checkpoint(1)) != store.save(checkpoint(1))


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint") as caught:
        CheckpointStore(tmp_path / "none").load_latest()
    assert caught.value.path == str(tmp_path / "none")


def test_a_checkpoint_torn_anywhere_is_passed_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    newest = store.save(checkpoint(2))
    num_points = 0
    for path in sorted(newest.iterdir()):
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            restored = store.load_latest()
            assert restored.checkpoint.state.version == 1, (path.name, length)
            assert newest.name in restored.passed_over[0]
            num_points += 1
        path.write_bytes(whole)
    assert num_points > 500
    assert store.load_latest().checkpoint.state.version == 2


def test_a_flipped_bit_is_found_anywhere(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    newest = store.save(checkpoint(2))
    for path in sorted(newest.iterdir()):
        whole = path.read_bytes()
        for position in range(0, len(whole), 7):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            assert store.load_latest().checkpoint.state.version == 1, (path.name, position)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "ledger.bin", "checkpoint.json"])
def test_a_checkpoint_that_lacks_a_file_is_passed_over(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    (store.save(checkpoint(2)) / name).unlink()
    assert store.load_latest().checkpoint.state.version == 1


def test_every_damaged_checkpoint_is_named_when_none_is_left(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for version in (1, 2):
        (store.save(checkpoint(version)) / "ledger.bin").write_bytes(b"other")
    with pytest.raises(CheckpointError) as caught:
        store.load_latest()
    assert "checkpoint-0000000000: ledger.bin does not match its digest" in caught.value.detail
    assert "checkpoint-0000000001: ledger.bin does not match its digest" in caught.value.detail


def test_a_full_disk_leaves_the_old_checkpoint_intact(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    with no_file_over(4_096), pytest.raises(CheckpointNotSaved, match="intact") as caught:
        store.save(checkpoint(2, num_values=4_096))
    assert caught.value.path == str(tmp_path / "checkpoint-0000000001")
    assert "File too large" in caught.value.detail
    assert folders(tmp_path) == ["checkpoint-0000000000"]
    assert store.load_latest().checkpoint.state.version == 1


def test_what_a_crash_left_half_written_is_ignored_and_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    done = store.save(checkpoint(1))
    shutil.copytree(done, tmp_path / "checkpoint-0000000001.partial")
    assert store.load_latest().path == done
    store.save(checkpoint(2))
    assert folders(tmp_path) == ["checkpoint-0000000000", "checkpoint-0000000001"]


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointNotSaved, match="Not a directory"):
        CheckpointStore(tmp_path / "file" / "run").save(checkpoint(1))


def one_window(engine: Engine, key: int) -> None:
    item = train_item(key)
    forwarded = engine.forward([item])
    assert forwarded.group_id is not None
    labels = torch.arange(item.num_samples).numpy() % 3
    engine.backward(forwarded.group_id, {key: output_gradient(forwarded.outputs[key], labels)}, last=True)
    engine.commit(item.num_samples, None)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_training_continues_from_a_checkpoint_as_if_nothing_had_happened(tmp_path: Path, name: str) -> None:
    engine, store = small_engine(name=name), CheckpointStore(tmp_path)
    for key in range(3):
        one_window(engine, key)
    store.save(Checkpoint(engine.state_dict()))
    resumed = small_engine(seed=1, name=name)
    resumed.load_state_dict(store.load_latest().checkpoint.state)
    for key in range(3, 6):
        one_window(engine, key)
        one_window(resumed, key)
    assert resumed.version == engine.version == 6
    assert resumed.parameters_digest() == engine.parameters_digest()
