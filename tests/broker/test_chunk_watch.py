"""When missing pieces are asked for: by the pace of those that came, twice as late each time, a few times."""

from __future__ import annotations

import pytest

from cutlayer.broker.chunk_watch import (
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    MAX_ASKS,
    MAX_REMEMBERED,
    MAX_WATCHED,
    MAX_WATCHED_OF_SENDER,
    PACES_WAITED,
    SHORTEST_WAIT_S,
    ChunkKey,
    ChunkWatch,
)

KEY = ("clinic/07", b"message1")
COUNT = 1_000


def fed(watch: ChunkWatch, key: ChunkKey, pace_s: float, num_pieces: int, start_s: float = 0.0) -> float:
    """Let pieces come, so many seconds apart; return when the last one came."""
    for number in range(num_pieces):
        now = start_s + number * pace_s
        watch.piece_came(key, number + 1, COUNT)
        assert watch.tick(now) == []
    return now


def asks_of(watch: ChunkWatch, since_s: float) -> list[float]:
    """Return how long after a moment each ask comes when nothing arrives any more."""
    times = []
    while (due := watch.next_deadline()) is not None:
        assert watch.tick(due - 1e-6) == []
        if watch.tick(due):
            times.append(due - since_s)
    return times


def test_nothing_is_asked_for_while_nothing_is_unfinished() -> None:
    watch = ChunkWatch()
    assert watch.tick(0.0) == []
    assert watch.next_deadline() is None


def test_after_one_piece_it_waits_a_fixed_time_and_then_twice_as_long_each_time() -> None:
    watch = ChunkWatch()
    came_at = fed(watch, KEY, 1.0, 1)
    assert asks_of(watch, came_at) == pytest.approx([FIRST_WAIT_S * (2.0**n - 1) for n in range(1, MAX_ASKS + 1)])


@pytest.mark.parametrize("pace_s", [0.2, 1.0, 8.0, 70.0])
def test_the_slower_the_pieces_the_longer_the_wait(pace_s: float) -> None:
    watch = ChunkWatch()
    now = 0.0
    for number in range(8):  # at the slowest the first waits are too short, and are learned from
        watch.piece_came(KEY, number + 1, COUNT)
        watch.tick(now)
        now += pace_s
    came_at = now - pace_s
    assert asks_of(watch, came_at)[0] == pytest.approx(PACES_WAITED * pace_s)


def test_pieces_as_slow_as_a_slow_link_makes_them_are_not_asked_for_again_and_again() -> None:
    """64 KiB at 64 kbit/s: the pace is learned at the cost of two asks, for a piece or two each."""
    watch = ChunkWatch()
    num_asks = 0
    for number in range(50):
        watch.piece_came(KEY, number + 1, COUNT)
        for tick in range(8):
            num_asks += len(watch.tick(8.0 * number + tick))
    assert num_asks == 2


@pytest.mark.parametrize(("pace_s", "wait_s"), [(1e-4, SHORTEST_WAIT_S), (1e4, LONGEST_WAIT_S)])
def test_the_wait_has_bounds(pace_s: float, wait_s: float) -> None:
    watch = ChunkWatch()
    came_at = fed(watch, KEY, 1e-4, 3)
    watch.finished(KEY)
    other = ("clinic/07", b"message2")
    watch.piece_came(other, 1, COUNT)
    watch.tick(came_at)
    for number in range(2, 40):  # a pace that grows less than the wait does is followed
        came_at += min(pace_s, SHORTEST_WAIT_S * 1.9 ** (number - 2))
        watch.piece_came(other, number, COUNT)
        watch.tick(came_at)
    assert asks_of(watch, came_at)[0] == pytest.approx(wait_s)


def test_pieces_that_come_at_once_are_known_to_be_fast() -> None:
    watch = ChunkWatch()
    assert watch.tick(7.0) == []
    for number in range(10):
        watch.piece_came(KEY, number + 1, COUNT)
    assert watch.tick(8.0) == []
    assert asks_of(watch, 8.0)[0] == pytest.approx(SHORTEST_WAIT_S)


def test_the_pace_of_a_sender_is_known_at_its_next_message_and_no_others() -> None:
    watch = ChunkWatch()
    came_at = fed(watch, KEY, 0.2, 20)
    watch.finished(KEY)
    assert watch.next_deadline() is None
    for key, wait_s in ((("clinic/07", b"message2"), 0.8), (("clinic/08", b"message2"), FIRST_WAIT_S)):
        watch.piece_came(key, 1, COUNT)
        watch.tick(came_at)
        assert asks_of(watch, came_at)[0] == pytest.approx(wait_s)


def test_a_piece_after_an_ask_measures_nothing_and_keeps_the_longer_wait() -> None:
    watch = ChunkWatch()
    came_at = fed(watch, KEY, 0.2, 20)
    assert watch.tick(came_at + 0.8) == [KEY]
    watch.piece_came(KEY, 21, COUNT)
    assert watch.tick(came_at + 1.2) == []
    assert asks_of(watch, came_at + 1.2)[0] == pytest.approx(1.6)


def test_every_new_piece_gives_the_message_another_chance() -> None:
    watch = ChunkWatch()
    came_at = fed(watch, KEY, 0.2, 20)
    assert len(asks_of(watch, came_at)) == MAX_ASKS
    watch.piece_came(KEY, 21, COUNT)
    assert watch.tick(1_000.0) == []
    assert len(asks_of(watch, 1_000.0)) == MAX_ASKS


def test_a_late_copy_of_a_piece_does_not_have_a_finished_message_sent_again() -> None:
    watch = ChunkWatch()
    fed(watch, KEY, 0.2, 3)
    watch.finished(KEY)
    watch.piece_came(KEY, 1, 4)
    assert watch.tick(1.0) == []
    assert watch.next_deadline() is None
    watch.piece_came(KEY, 2, 4)  # so much of it is no copy: it is really sent again
    assert watch.tick(1.0) == []
    assert watch.next_deadline() == pytest.approx(1.8)


def test_a_message_that_was_given_up_is_asked_for_no_more() -> None:
    watch = ChunkWatch()
    came_at = fed(watch, KEY, 0.2, 3)
    watch.forget(KEY)
    assert watch.tick(came_at + 100.0) == []


def test_one_sender_cannot_have_everything_watched() -> None:
    watch = ChunkWatch()
    for number in range(10 * MAX_WATCHED_OF_SENDER):
        watch.piece_came(("clinic/07", number.to_bytes(8, "big")), 1, COUNT)
    watch.piece_came(("clinic/08", b"message1"), 1, COUNT)
    watch.tick(0.0)
    asked = watch.tick(FIRST_WAIT_S)
    assert len(asked) == MAX_WATCHED_OF_SENDER + 1
    assert ("clinic/08", b"message1") in asked


def test_senders_and_messages_without_end_take_no_memory_without_end() -> None:
    watch = ChunkWatch()
    for number in range(3 * MAX_WATCHED):
        key = (f"clinic/{number}", b"message1")
        for tick in (0.0, 1.0):
            watch.piece_came(key, 1, COUNT)
            watch.tick(tick)
        if number % 2:
            watch.finished(key)
    assert len(watch._watched) == MAX_WATCHED
    assert len(watch._paces_s) <= MAX_REMEMBERED
    assert len(watch._finished) <= MAX_REMEMBERED
