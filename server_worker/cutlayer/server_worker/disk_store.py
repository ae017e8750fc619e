"""Activations on disk: one SQLite file that the workers of a machine share, and that survives their restarts.

What may go wrong, and what happens then:

    a process is killed             SQLite's journal undoes what it was writing; the others go on
    a byte on the disk changes      the entry's checksum differs: the sample is missing
    the file is damaged or foreign  it is removed with a warning, and an empty store takes its place, with another id
    the disk is full, or refuses    samples are declined, with one warning; what is there can be read
    another process has the lock    `busy_s` later samples are declined
    another worker deletes          afterwards nothing is kept and all is missing, here too

None of it raises. Not thread-safe: one thread at a time.

What is forgotten cannot be fetched any more at once, but is freed bit by bit, 8 MiB with each put: freeing takes 3 to
10 s a gigabyte. Freed pages hold their bytes until others overwrite them; `delete` removes the files.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.server_worker.activation_entry import SampleEncoder, decode_sample
from cutlayer.server_worker.activation_file import OpenFile, is_damage, open_file, remove_files
from cutlayer.server_worker.activation_rows import ActivationRows, Entry
from cutlayer.server_worker.stored_sample import Fetched, StoredSample, assemble, require_sound, split_samples

__all__ = ["DiskActivationStore"]

log = logging.getLogger(__name__)

_OPENING_S = 10.0  # a start may wait for another process's start


class DiskActivationStore:
    """A store in a folder, shared by all processes on this machine that open it for the same run.

    When it is full it declines, except that agents that were idle make room; `activation_store` says why.

    Args:
        folder: The store's own; made if need be, and closed to other users.
        run_id: The run. Stores of other runs in the folder are removed.
        max_bytes: Of the file. While a put replaces samples, the journal beside it takes as much as these do.
        idle_s: An agent that was away for so long makes room for others.
        codecs: How samples are kept, tried in this order; see `SampleEncoder`. Of what came as int8, lz4 saves under
            9 %, zstd:1 10 % and zstd:3 25 %, and they take two to five times as long to put.
        clock: Seconds, the same for all processes, also after a restart of the machine.
        busy_s: How long to wait for another process's lock, at most.

    Raises:
        SettingsError: The folder cannot be used.
        ValueError: A codec's name is wrong, or none is lossless.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        *,
        max_bytes: int,
        idle_s: float = 3600.0,
        codecs: Sequence[str] = ("identity",),
        clock: Callable[[], float] = time.time,
        busy_s: float = 0.5,
    ) -> None:
        self._folder = folder
        self._run_id = run_id
        self._max_bytes = max_bytes
        self._idle_s = idle_s
        self._encoder = SampleEncoder(codecs)
        self._clock = clock
        self._busy_s = busy_s
        self._id = secrets.token_hex(8)
        self._file: OpenFile | None = None
        self._rows: ActivationRows | None = None
        self._touched_at: dict[str, float] = {}
        self._warned: set[str] = set()
        # What could not be dropped from the disk, by agent (None: all of it): it is hidden here, and dropped later.
        self._hidden: dict[str, set[int] | None] = {}
        try:
            self._take(open_file(folder, run_id, busy_s=busy_s, lock_s=_OPENING_S, may_make=True))
        except OSError as error:
            raise SettingsError(
                f"cannot keep activations in {folder}: {error.strerror or error}",
                "name a folder of its own that this user may write to, or keep no activations",
            ) from error
        except sqlite3.Error as error:
            self._warn("activations are not kept", error)

    @property
    def id(self) -> str:
        """Names the store; changes when a damaged file was replaced."""
        return self._id

    @property
    def stored_bytes(self) -> int:
        """What the pages in use take on disk."""
        with suppress(sqlite3.Error):
            return 0 if self._rows is None else self._rows.used_bytes
        return 0

    @property
    def num_samples(self) -> int:
        """Samples in it, of all agents."""
        with suppress(sqlite3.Error):
            return 0 if self._rows is None else self._rows.num_samples
        return 0

    def put(
        self,
        agent: str,
        samples: NDArray[np.int64],
        tokens: Mapping[str, NDArray[np.float32]],
        *,
        positions: Mapping[str, NDArray[np.intp]] | None = None,
        visits: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.bool_]:
        """Keep a microbatch; see `ActivationStore.put`."""
        positions = positions or {}
        require_sound(samples, tokens, positions, visits)
        kept = dict.fromkeys(samples.tolist(), False)
        if (rows := self._current()) is not None:
            # Before the lock is taken: encoding may take longer than writing.
            entries = {
                number: None if sample is None else Entry(sample.visits, self._encoder.encode(sample))
                for number, sample in split_samples(samples, tokens, positions, visits)
            }
            now = self._clock()
            try:
                with rows.transaction():
                    self._drop_hidden(rows)
                    written = rows.write(agent, entries, now)
                kept = written
                self._hidden.clear()
                self._touched_at[agent] = now
            except sqlite3.Error as error:
                self._hide(agent, kept)
                self._failed("samples are declined", error)
        return np.array([kept[number] for number in samples.tolist()], bool)

    def get(self, agent: str, samples: NDArray[np.int64], names: Sequence[str]) -> Fetched:
        """Return what was put; see `ActivationStore.get`."""
        stored: dict[int, StoredSample | None] = {}
        if (rows := self._current()) is not None:
            try:
                stored = self._read(rows, agent, samples.tolist(), names)
                self._touch(rows, agent)
            except sqlite3.Error as error:
                self._failed("samples are missing", error)
        return assemble([stored.get(number) for number in samples.tolist()], names)

    def forget(self, agent: str) -> None:
        """Drop all samples of an agent."""
        self._hidden[agent] = None
        if (rows := self._current()) is not None:
            try:
                with rows.transaction():
                    self._drop_hidden(rows)
                self._hidden.clear()
            except sqlite3.Error as error:
                self._failed("what shall be forgotten is hidden, not dropped", error)

    def delete(self) -> None:
        """Remove the files, for all processes."""
        self.close()
        try:
            remove_files(self._folder, _OPENING_S)
        except OSError as error:
            self._warn(f"remove {self._folder} by hand, it holds activations of a run that has ended", error)

    def close(self) -> None:
        """Let go of the file; afterwards nothing is kept here and all is missing."""
        if self._file is not None:
            self._file.connection.close()
            self._file = self._rows = None

    def _read(
        self, rows: ActivationRows, agent: str, numbers: list[int], names: Sequence[str]
    ) -> dict[int, StoredSample | None]:
        hidden = self._hidden.get(agent, set())
        if hidden is None:
            return {}
        entries: dict[int, Entry] = {}
        with rows.transaction("DEFERRED"):
            for number in set(numbers) - hidden:
                try:
                    entry = rows.read(agent, number)
                except ValueError as error:
                    self._warn("damaged samples are taken as missing", error)
                    continue
                if entry is not None:
                    entries[number] = entry
        # After the lock is given back.
        return {number: decode_sample(entry.body, entry.visits, names) for number, entry in entries.items()}

    def _touch(self, rows: ActivationRows, agent: str) -> None:
        """Note that an agent is not idle: seldom, as a read must not cost a write."""
        now = self._clock()
        if now - self._touched_at.get(agent, -np.inf) >= self._idle_s / 8:
            with suppress(sqlite3.Error):  # the next read does it
                rows.touch(agent, now)
                self._touched_at[agent] = now

    def _hide(self, agent: str, numbers: Iterable[int]) -> None:
        hidden = self._hidden.setdefault(agent, set())
        if hidden is not None:
            hidden.update(numbers)

    def _drop_hidden(self, rows: ActivationRows) -> None:
        for agent, numbers in self._hidden.items():
            if numbers is None:
                rows.forget(agent)
            else:
                rows.drop(agent, sorted(numbers))
        rows.reclaim()

    def _take(self, file: OpenFile | None) -> None:
        self._file = file
        self._touched_at.clear()
        if file is not None:
            self._id = file.id
            self._rows = ActivationRows(file.connection, file.id, max_bytes=self._max_bytes, idle_s=self._idle_s)

    def _current(self) -> ActivationRows | None:
        """Return the rows of the file; another process may have replaced it, or deleted it."""
        if self._file is not None and not self._file.is_in_place:
            self.close()
            self._reopen(may_make=False)
        return self._rows

    def _reopen(self, *, may_make: bool, damaged: Path | None = None) -> None:
        try:
            self._take(
                open_file(
                    self._folder,
                    self._run_id,
                    busy_s=self._busy_s,
                    lock_s=self._busy_s,
                    may_make=may_make,
                    damaged=damaged,
                )
            )
        except FileNotFoundError:
            pass  # the run has ended
        except (OSError, sqlite3.Error) as error:
            self._warn("activations are not kept any more", error)

    def _failed(self, effect: str, error: sqlite3.Error) -> None:
        """Replace a damaged file, warn of anything else."""
        if self._file is None or not is_damage(error):
            self._warn(effect, error)
            return
        damaged = self._file.path
        log.warning("the activation store %s is damaged: %s", damaged, error)
        self.close()
        self._reopen(may_make=True, damaged=damaged)

    def _warn(self, effect: str, error: Exception) -> None:
        """Warn, once of each effect."""
        if effect not in self._warned:
            self._warned.add(effect)
            log.warning("activation store in %s: %s: %s", self._folder, effect, error)
