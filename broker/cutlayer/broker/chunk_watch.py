"""When to ask for the missing pieces of a message: the time follows from the pace of those that have come.

A piece that is lost is noticed by the silence after those that came. How long a silence means loss depends on the
link: pieces of 64 KiB come 8 s apart at 64 kbit/s. So the wait is a multiple of the usual time from piece to piece,
learned for each sender, within bounds, and doubled after each ask as TCP's timer is (RFC 6298, sections 5 and 6).
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass

__all__ = ["ChunkKey", "ChunkWatch"]

ChunkKey = tuple[str, bytes]
"""A sender, and the id of a message of its."""

SHORTEST_WAIT_S = 0.5
FIRST_WAIT_S = 2.0
"""While a sender's pace is unknown."""
LONGEST_WAIT_S = 300.0
PACES_WAITED = 4.0
"""Times from piece to piece that make a silence: with 5 % loss, four pieces in a row are lost once in 160,000."""
MAX_ASKS = 6
"""Asks without an answer; then only the sender's own deadline helps."""
MAX_WATCHED = 4_096
"""Messages that are asked for."""
MAX_WATCHED_OF_SENDER = 64
MAX_REMEMBERED = 4_096
"""Senders whose pace is known, and messages that are known to be finished."""


@dataclass(slots=True)
class _Watched:
    wait_s: float
    came_at: float | None = None
    ask_at: float = math.inf
    num_new: int = 0
    num_asks: int = 0


class ChunkWatch:
    """Watches the unfinished messages of all senders. Does no I/O: pieces and the time in, what to ask for out."""

    def __init__(self) -> None:
        self._watched: dict[ChunkKey, _Watched] = {}
        self._num_of: Counter[str] = Counter()
        self._fresh: dict[ChunkKey, _Watched] = {}
        self._ticked_at: float | None = None
        self._next_at = math.inf  # nothing is due before; scanning all would cost each tick
        self._paces_s: OrderedDict[str, float] = OrderedDict()
        self._finished: OrderedDict[ChunkKey, None] = OrderedDict()
        self.num_pieces = 0
        """Pieces that have come."""

    def piece_came(self, key: ChunkKey, num_held: int, count: int) -> None:
        """Take notice of a new piece. When it came is the time of the next `tick`."""
        self.num_pieces += 1
        watched = self._watched.get(key)
        if watched is None:
            # A late copy of a piece begins a finished message anew; only one that is really sent again is asked for.
            if key in self._finished and 2 * num_held < count:
                return
            if len(self._watched) >= MAX_WATCHED or self._num_of[key[0]] >= MAX_WATCHED_OF_SENDER:
                return
            watched = self._watched[key] = _Watched(_wait_s(self._paces_s.get(key[0])))
            self._num_of[key[0]] += 1
        watched.num_new += 1
        self._fresh[key] = watched

    def finished(self, key: ChunkKey) -> None:
        """Take notice that a message is whole."""
        self.forget(key)
        self._finished[key] = None
        self._finished.move_to_end(key)
        if len(self._finished) > MAX_REMEMBERED:
            self._finished.popitem(last=False)

    def forget(self, key: ChunkKey) -> None:
        """Ask for a message no more."""
        if self._watched.pop(key, None) is not None:
            self._num_of[key[0]] -= 1
            if not self._num_of[key[0]]:
                del self._num_of[key[0]]

    def tick(self, now: float) -> list[ChunkKey]:
        """Return the messages to ask for now."""
        for (sender, _), watched in self._fresh.items():  # finished ones, too: they tell the pace
            self._note_progress(sender, watched, now)
        self._fresh.clear()
        self._ticked_at = now
        if now < self._next_at:
            return []
        asked = [key for key, watched in self._watched.items() if watched.ask_at <= now]
        for key in asked:
            watched = self._watched[key]
            watched.num_asks += 1
            watched.wait_s = min(2.0 * watched.wait_s, LONGEST_WAIT_S)
            watched.ask_at = now + watched.wait_s
            if watched.num_asks >= MAX_ASKS:
                self.forget(key)
        self._next_at = min((watched.ask_at for watched in self._watched.values()), default=math.inf)
        return asked

    def next_deadline(self) -> float | None:
        """Return the time before which `tick` has nothing to do, or None."""
        return self._next_at if self._watched else None

    def _note_progress(self, sender: str, watched: _Watched, now: float) -> None:
        known_s = self._paces_s.get(sender)
        # Of several that came at once, all but perhaps the first came since the last look.
        since = self._ticked_at if watched.came_at is None and watched.num_new > 1 else watched.came_at
        # By Karn's rule what was asked for measures nothing, and the longer wait stays until something does. Where
        # nothing is known at all, it is at least a sign that the next wait should be as long.
        if since is not None and (known_s is None or not watched.num_asks):
            pace_s = (now - since) / (watched.num_new if not watched.num_asks else PACES_WAITED)
            known_s = pace_s if known_s is None else known_s + (pace_s - known_s) / 4
            self._paces_s[sender] = known_s
            self._paces_s.move_to_end(sender)
            if len(self._paces_s) > MAX_REMEMBERED:
                self._paces_s.popitem(last=False)
            watched.wait_s = _wait_s(known_s)
        watched.came_at, watched.ask_at = now, now + watched.wait_s
        watched.num_new = watched.num_asks = 0
        self._next_at = min(self._next_at, watched.ask_at)


def _wait_s(pace_s: float | None) -> float:
    if pace_s is None:
        return FIRST_WAIT_S
    return min(max(PACES_WAITED * pace_s, SHORTEST_WAIT_S), LONGEST_WAIT_S)
