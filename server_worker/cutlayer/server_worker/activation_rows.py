"""The SQL of a store's file: samples in, samples out. What fails raises `sqlite3.Error`; `disk_store` handles it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cutlayer.server_worker.activation_entry import seal
from cutlayer.server_worker.activation_file import PAGE_BYTES

__all__ = ["ActivationRows", "Entry"]

_EVICTED_AT_ONCE = 8
_RECLAIMED_PAGES = 8 * 2**20 // PAGE_BYTES
"""Freed at once of what was forgotten: 25 to 80 ms. All of it may be gigabytes, each page of which is looked at."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample as the file has it.

    Attributes:
        visits: As it was put.
        body: Its tokens, encoded.
    """

    visits: int
    body: bytes


class ActivationRows:
    """The rows of one file.

    Args:
        connection: In autocommit mode.
        store_id: Goes into the checksums.
        max_bytes: Of the pages in use.
        idle_s: An agent that was away for so long makes room for others.
    """

    def __init__(self, connection: sqlite3.Connection, store_id: str, *, max_bytes: int, idle_s: float) -> None:
        self._connection = connection
        self._store_id = store_id
        self._max_pages = max_bytes // PAGE_BYTES
        self._idle_s = idle_s

    @property
    def used_bytes(self) -> int:
        """What the pages in use take: the file's size less the pages that are free."""
        return self._used_pages() * PAGE_BYTES

    @property
    def num_samples(self) -> int:
        """Rows, of all agents."""
        return self._number(
            "SELECT COUNT(*) FROM entries WHERE agent IN (SELECT number FROM agents WHERE name IS NOT NULL)"
        )

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """All or nothing; `DEFERRED` takes no lock for reading."""
        self._connection.execute(f"BEGIN {kind}")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                self._connection.execute("ROLLBACK")
            raise

    def write(self, agent: str, entries: Mapping[int, Entry | None], now: float) -> dict[int, bool]:
        """Keep an agent's samples where there is room, in an open transaction, and drop the others.

        Args:
            agent: Whose.
            entries: By number; None drops the sample.
            now: Seconds, of the clock that all processes share.

        Returns:
            Whether each is kept.
        """
        self._connection.execute(
            "INSERT INTO agents (name, touched_at) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET touched_at = MAX(touched_at, excluded.touched_at)",
            (agent, now),
        )
        owner = self._number("SELECT number FROM agents WHERE name = ?", agent)
        return {number: self._write_one(agent, owner, number, entry, now) for number, entry in entries.items()}

    def read(self, agent: str, number: int) -> Entry | None:
        """Return a sample; None if there is none.

        Raises:
            ValueError: What is there is not what was written.
        """
        row = self._connection.execute(
            "SELECT visits, digest, body FROM entries"
            " WHERE agent = (SELECT number FROM agents WHERE name = ?) AND sample = ?",
            (agent, number),
        ).fetchone()
        if row is None:
            return None
        visits, digest, body = row
        # SQLite gives back any type from a damaged row.
        has_types = isinstance(visits, int) and 0 <= visits <= 255 and isinstance(body, bytes)
        if has_types and digest == seal(self._store_id, agent, number, visits, body):
            return Entry(visits, body)
        raise ValueError(f"sample {number} of {agent} does not match its checksum")

    def touch(self, agent: str, now: float) -> None:
        """Note that an agent is not idle."""
        self._connection.execute(
            "UPDATE agents SET touched_at = ? WHERE name = ? AND touched_at < ?", (now, agent, now)
        )

    def drop(self, agent: str, numbers: Sequence[int]) -> None:
        """Drop samples of an agent, in an open transaction."""
        self._connection.executemany(
            "DELETE FROM entries WHERE agent = (SELECT number FROM agents WHERE name = ?) AND sample = ?",
            [(agent, number) for number in numbers],
        )

    def forget(self, agent: str) -> None:
        """Make all samples of an agent nobody's, in an open transaction; `reclaim` frees what they take."""
        self._connection.execute("UPDATE agents SET name = NULL, touched_at = -1e300 WHERE name = ?", (agent,))

    def reclaim(self) -> None:
        """Free some of what was forgotten, in an open transaction."""
        limit = self._used_pages() - _RECLAIMED_PAGES
        while self._used_pages() > limit:
            nobody = self._connection.execute("SELECT number FROM agents WHERE name IS NULL LIMIT 1").fetchone()
            if nobody is None:
                return
            self._drop_some(nobody)

    def _write_one(self, agent: str, owner: int, number: int, entry: Entry | None, now: float) -> bool:
        row = self._connection.execute(
            "SELECT number, LENGTH(body) FROM entries WHERE agent = ? AND sample = ?", (owner, number)
        ).fetchone()
        if entry is None or not self._make_room(len(entry.body) - (0 if row is None else row[1]), owner, now):
            if row is not None:
                self._connection.execute("DELETE FROM entries WHERE number = ?", row[:1])
            return False
        values = (entry.visits, seal(self._store_id, agent, number, entry.visits, entry.body), entry.body)
        if row is None:
            self._connection.execute(
                "INSERT INTO entries (visits, digest, body, agent, sample) VALUES (?, ?, ?, ?, ?)",
                (*values, owner, number),
            )
        else:  # in its place: appending and deleting would leave holes that appended rows do not fill
            self._connection.execute(
                "UPDATE entries SET visits = ?, digest = ?, body = ? WHERE number = ?", (*values, row[0])
            )
        return True

    def _make_room(self, more_bytes: int, owner: int, now: float) -> bool:
        # A page more than the bytes fill, for a page that others share, and one for the index.
        limit = self._max_pages - max(-(-more_bytes // PAGE_BYTES), 0) - 2
        while self._used_pages() > limit:
            idle = self._connection.execute(
                "SELECT number FROM agents WHERE touched_at <= ? AND number != ? ORDER BY touched_at LIMIT 1",
                (now - self._idle_s, owner),
            ).fetchone()
            if idle is None:
                return False
            self._drop_some(idle)
        return True

    def _drop_some(self, owner: tuple[int]) -> None:
        """Drop a few samples of an agent, which need not be more than are needed, or the agent when it has none."""
        dropped = self._connection.execute(
            "DELETE FROM entries WHERE number IN (SELECT number FROM entries WHERE agent = ? LIMIT ?)",
            (*owner, _EVICTED_AT_ONCE),
        )
        if dropped.rowcount == 0:
            self._connection.execute("DELETE FROM agents WHERE number = ?", owner)

    def _used_pages(self) -> int:
        return self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")

    def _number(self, sql: str, *parameters: object) -> int:
        value: int = self._connection.execute(sql, parameters).fetchone()[0]
        return value
