"""What the store on disk adds to what every store promises (`test_activation_store`)."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.server_worker.disk_store import DiskActivationStore
from server_worker import store_process

LIMIT_S = 120.0


def open_store(folder: Path, run_id: str = "run", *, max_bytes: int = 1 << 30) -> DiskActivationStore:
    return DiskActivationStore(folder, run_id, max_bytes=max_bytes, busy_s=0.05)


def tokens(b: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    return {"image": np.random.default_rng(seed).normal(size=(b, 16, 128)).astype(np.float32)}


def num_found(store: DiskActivationStore, b: int, seed: int = 0) -> int:
    """Count the samples that are there, all of which must be right."""
    fetched = store.get("a", np.arange(b), ["image"])
    there = np.flatnonzero(~fetched.is_missing)
    for row in there:
        assert np.array_equal(fetched.tokens["image"][row], tokens(b, seed)["image"][row])
    return len(there)


def database(folder: Path) -> Path:
    (path,) = folder.glob("*.sqlite")
    return path


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@contextmanager
def no_file_over(num_bytes: int) -> Iterator[None]:
    """A disk that is full, as far as this process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_restart_finds_the_same_store_with_the_same_samples(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    store.put("a", np.arange(40), tokens(40))
    store.close()
    again = open_store(tmp_path / "store")
    assert again.id == store.id
    assert again.num_samples == 40
    assert num_found(again, 40) == 40


def test_a_second_process_shares_what_the_first_puts_and_forgets(tmp_path: Path) -> None:
    one, other = open_store(tmp_path / "store"), open_store(tmp_path / "store")
    assert one.id == other.id
    one.put("a", np.arange(4), tokens(4))
    assert num_found(other, 4) == 4
    other.forget("a")
    assert num_found(one, 4) == 0


def test_what_was_forgotten_is_freed_bit_by_bit_and_never_found_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    big = {"image": np.ones((32, 197, 768), np.float32)}  # 19 MB: more than is freed at once
    store.put("a", np.arange(32), big)
    store.put("a", np.arange(32, 64), big)
    full_bytes = store.stored_bytes
    store.forget("a")
    assert store.num_samples == 0
    assert full_bytes > store.stored_bytes > 0.5 * full_bytes
    assert store.put("a", np.arange(4), tokens(4)).all()
    assert num_found(store, 64) == 4
    for _ in range(6):
        store.put("a", np.arange(4), tokens(4))
    assert store.stored_bytes < 0.01 * full_bytes
    assert num_found(store, 64) == store.num_samples == 4


def test_what_was_forgotten_makes_room_at_once(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_bytes=45 * 2**20)
    big = {"image": np.ones((32, 197, 768), np.float32)}
    store.put("a", np.arange(32), big)
    assert store.put("a", np.arange(32, 64), big).all()
    assert not store.put("b", np.arange(32), big).all()
    store.forget("a")
    assert store.put("b", np.arange(32), big).all()
    assert store.put("b", np.arange(32, 64), big).all()


def test_only_this_user_may_read_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        store = open_store(folder)
        store.put("a", np.arange(4), tokens(4))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 2, "the file and the lock"
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_store_of_another_run_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = open_store(tmp_path, "old")
    old.put("a", np.arange(4), tokens(4))
    old.close()
    (tmp_path / "notes.txt").write_text("somebody else's")
    new = open_store(tmp_path, "new")
    assert new.id != old.id
    assert num_found(new, 4) == 0
    assert "belongs to the run old" in caplog.text
    assert (tmp_path / "notes.txt").exists()
    assert database(tmp_path).name == f"activations-{new.id}.sqlite"


def test_delete_removes_the_folder_with_all_files(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    store.put("a", np.arange(4), tokens(4))
    store.delete()
    assert not (tmp_path / "store").exists()


def test_delete_leaves_what_is_not_the_stores(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    (tmp_path / "store" / "notes.txt").write_text("somebody else's")
    store.delete()
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["notes.txt"]


def test_when_one_worker_deletes_the_others_do_not_bring_the_store_back(tmp_path: Path) -> None:
    one, other = open_store(tmp_path / "store"), open_store(tmp_path / "store")
    other.put("a", np.arange(4), tokens(4))
    one.delete()
    assert num_found(other, 4) == 0
    assert not other.put("a", np.arange(4), tokens(4)).any()
    assert other.num_samples == 0
    other.delete()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("is_folder_kept", [False, True])
def test_a_store_that_is_deleted_in_the_middle_of_a_put_does_not_come_back(
    tmp_path: Path, is_folder_kept: bool
) -> None:
    def delete_now() -> float:  # a put looks at the clock right before it writes
        other.delete()
        return 0.0

    folder = tmp_path / "store"
    other = open_store(folder)
    store = DiskActivationStore(folder, "run", max_bytes=1 << 30, clock=delete_now)
    left = []
    if is_folder_kept:
        (folder / "notes.txt").write_text("somebody else's")
        left = ["notes.txt"]
    assert not store.put("a", np.arange(4), tokens(4)).any()
    assert not store.put("a", np.arange(4), tokens(4)).any()
    store.close()
    assert [path.name for path in folder.glob("*")] == left


def test_the_folder_stays_within_the_budget(tmp_path: Path) -> None:
    budget = 4 * 2**20
    store = open_store(tmp_path / "store", max_bytes=budget)
    kept = [store.put("a", np.arange(first, first + 32), tokens(32)).sum() for first in range(0, 1024, 32)]
    assert kept[0] == 32
    assert kept[-1] == 0
    assert 0.9 * budget < database(tmp_path / "store").stat().st_size <= budget
    assert sum(kept) * 8192 > 0.85 * budget
    for visit in range(20):
        store.put("a", np.arange(32), tokens(32, visit))
    assert folder_bytes(tmp_path / "store") <= budget


def test_a_changed_byte_is_a_missing_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "store"
    store = open_store(folder)
    store.put("a", np.arange(8), tokens(8))
    store.close()
    value = tokens(8)["image"][3, 7, 40:60].tobytes()
    data = bytearray(database(folder).read_bytes())
    data[data.index(value) + 5] ^= 1
    database(folder).write_bytes(data)
    store = open_store(folder)
    assert store.get("a", np.arange(8), ["image"]).is_missing.tolist() == [row == 3 for row in range(8)]
    assert "sample 3 of a does not match its checksum" in caplog.text
    store.put("a", np.arange(3, 4), {"image": tokens(8)["image"][3:4]})
    assert num_found(store, 8) == 8


@pytest.mark.parametrize("columns", ["agent = 3 - agent", "sample = 1 - sample", "visits = visits + 1"])
def test_a_row_that_is_somebody_elses_is_missing(tmp_path: Path, columns: str) -> None:
    store = open_store(tmp_path)
    store.put("a", np.array([0]), tokens(1, 1))
    store.put("b", np.array([1]), tokens(1, 2))
    with sqlite3.connect(database(tmp_path)) as connection:
        connection.execute(f"UPDATE entries SET {columns}")  # noqa: S608
    connection.close()
    for agent in ("a", "b"):
        assert store.get(agent, np.arange(2), ["image"]).is_missing.all()


@pytest.mark.parametrize("damage", ["text", "empty", "header", "version", "cut", "torn", "name", "another program's"])
def test_a_damaged_or_foreign_file_is_replaced_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    store.put("a", np.arange(64), tokens(64))
    store.close()
    path = database(tmp_path)
    data, noise = path.read_bytes(), np.random.default_rng(0).bytes(1 << 20)
    if damage == "text":
        path.write_text("not a database at all, but long enough to be one" * 100)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "header":
        path.write_bytes(data[:16] + noise[:84] + data[100:])
    elif damage == "version":
        path.write_bytes(data[:18] + b"\x07" + data[19:])
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "torn":
        path.write_bytes(data[:8192] + noise[: len(data) - 8192])
    elif damage == "name":
        path.write_bytes(data.replace(store.id.encode(), b"\xff" * len(store.id)))
    else:
        path.unlink()
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE theirs (value)")
        connection.close()
    again = open_store(tmp_path)
    assert num_found(again, 64) < 64 or damage == "version"  # which can be read, but not written to
    again.put("a", np.arange(64), tokens(64))  # some damage shows only here
    assert again.put("a", np.arange(64), tokens(64)).all()
    assert num_found(again, 64) == 64
    assert again.id != store.id
    assert caplog.records


def test_damage_that_shows_while_the_store_is_in_use_gives_an_empty_store_with_another_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = open_store(tmp_path), open_store(tmp_path)
    one.put("a", np.arange(64), tokens(64))
    with sqlite3.connect(database(tmp_path)) as connection:
        connection.execute("DROP TABLE entries")
    connection.close()
    old_id = one.id
    assert num_found(one, 64) == 0
    assert "is damaged" in caplog.text
    assert one.id != old_id
    assert one.put("a", np.arange(64), tokens(64)).all()
    assert num_found(other, 64) == 64
    assert other.id == one.id


def test_random_damage_never_gives_back_anything_else(tmp_path: Path) -> None:
    """Bytes of the file are overwritten at random, its structure included; at worst everything is missing."""
    rng = np.random.default_rng(0)
    num_samples_found = []
    for attempt in range(40):
        folder = tmp_path / str(attempt)
        store = open_store(folder)
        store.put("a", np.arange(32), tokens(32))
        store.close()
        data = bytearray(database(folder).read_bytes())
        for position in rng.integers(0, len(data) if attempt % 2 else 40_000, size=20):
            data[position] = rng.integers(256)
        database(folder).write_bytes(data)
        store = open_store(folder)
        num_samples_found.append(num_found(store, 32))
        store.put("a", np.arange(32), tokens(32, 1))
        num_found(store, 32, 1)
        store.delete()
    assert 0 < sum(num_samples_found) < 40 * 32, "or nothing was damaged, or everything"


def test_a_full_disk_declines_with_one_warning_and_what_is_there_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    store.put("a", np.arange(32), tokens(32))
    with no_file_over(max(path.stat().st_size for path in tmp_path.iterdir())):
        for first in (100, 200, 300):
            assert not store.put("a", np.arange(first, first + 32), tokens(32)).any()
        assert num_found(store, 32) == 32
    assert len(caplog.records) == 1
    assert "samples are declined" in caplog.text
    assert store.put("a", np.arange(100, 132), tokens(32)).all()
    assert store.num_samples == 64


def test_a_put_for_which_the_disk_has_half_the_room_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("a", np.arange(32), tokens(32))
    with no_file_over(database(tmp_path).stat().st_size + 16 * 8192):
        assert not store.put("a", np.arange(32, 64), tokens(32)).any()
    assert open_store(tmp_path).num_samples == 32


def test_what_a_full_disk_declines_is_not_there_in_its_older_form(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("a", np.arange(32), tokens(32, 1))
    store.put("b", np.arange(32), tokens(32, 1))
    with no_file_over(4096):  # not even what is there can be replaced
        assert not store.put("a", np.arange(16), tokens(16, 2)).any()
        store.forget("b")
        assert store.get("a", np.arange(32), ["image"]).is_missing.tolist() == [True] * 16 + [False] * 16
        assert store.get("b", np.arange(32), ["image"]).is_missing.all()
    assert store.put("a", np.arange(16, 17), tokens(1)).all()
    store.close()
    again = open_store(tmp_path)
    assert again.get("a", np.arange(32), ["image"]).is_missing.tolist() == [True] * 16 + [False] * 16
    assert again.get("b", np.arange(32), ["image"]).is_missing.all()


def test_a_disk_that_is_full_from_the_start_gives_a_store_that_keeps_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with no_file_over(1000):
        store = open_store(tmp_path)
        assert not store.put("a", np.arange(4), tokens(4)).any()
        assert num_found(store, 4) == 0
    assert "activations are not kept" in caplog.text
    assert not list(tmp_path.glob("*.sqlite*"))


def test_another_process_that_holds_the_lock_makes_the_store_decline_but_not_miss(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("a", np.arange(4), tokens(4))
    holder = sqlite3.connect(database(tmp_path), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert not store.put("a", np.arange(10, 14), tokens(4)).any()
    assert num_found(store, 4) == 4
    holder.execute("ROLLBACK")
    holder.close()
    assert store.put("a", np.arange(10, 14), tokens(4)).all()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="file/store"):
        open_store(tmp_path / "file" / "store")


def test_processes_share_a_store_and_one_that_is_killed_harms_nobody(tmp_path: Path) -> None:
    def start(seed: int) -> subprocess.Popen[str]:
        command = [sys.executable, store_process.__file__, str(tmp_path), str(seed)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    survivors = [start(seed) for seed in range(2)]
    ids = set()
    for seed in range(10, 14):
        victim = start(seed)
        assert victim.stdout is not None
        for _ in range(5):
            ids.add(victim.stdout.readline().split(" ")[0])
        victim.send_signal(signal.SIGKILL)  # writing or reading: it does nothing else
        victim.communicate(timeout=LIMIT_S)
        assert victim.returncode == -signal.SIGKILL
    for survivor in survivors:
        out, errors = survivor.communicate(timeout=LIMIT_S)
        assert survivor.returncode == 0, errors
        assert "damaged" not in errors
        last_id, num_kept, num_read = out.splitlines()[-1].split(" ")
        ids.add(last_id)
        assert int(num_kept) > 0
        assert int(num_read) > 0
    store = open_store(tmp_path, store_process.RUN)
    assert ids == {store.id}
    found, wrong = store_process.wrong_samples(store, np.arange(store_process.NUM_SAMPLES))
    assert found == store.num_samples > 0.5 * store_process.NUM_SAMPLES
    assert wrong == 0


def test_processes_that_start_at_once_find_one_store(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cutlayer.server_worker.disk_store import DiskActivationStore as S;"
        "print(S(Path(sys.argv[1]), 'run', max_bytes=1 << 30).id)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    ids = {child.communicate(timeout=LIMIT_S)[0] for child in children}
    assert len(ids) == 1
