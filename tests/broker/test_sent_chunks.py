"""Pieces given again: where, to whom, when and how often."""

from __future__ import annotations

import pytest

from cutlayer.broker.actions import Publish
from cutlayer.broker.chunking import cut
from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.messages import MissingChunks, RunManifest, serialize
from cutlayer.broker.sent_chunks import KEPT_MESSAGES, MAX_REPEATS, SHORTEST_REST_S, Sent, SentChunks, check_ask

LIMIT = 200
UP = "clinic/07/up/w0/activations"
AGENT = "clinic/07"


def publish(number: int = 0, num_bytes: int = 2_000, topic: str = UP) -> Publish:
    """Return a message that takes several packets."""
    return Publish(topic, RunManifest(number.to_bytes(4, "big") * (num_bytes // 4)))


def keep(kept: SentChunks, sent: Publish, out_at_bytes: int = 0) -> MissingChunks:
    """Keep a message, and return an ask for its second and third piece."""
    pieces = cut(serialize(sent.message), LIMIT)
    assert pieces is not None
    kept.keep(sent, pieces, LIMIT, out_at_bytes)
    return MissingChunks(pieces.message_id, pieces.count, ((1, 3),))


def found(kept: SentChunks, ask: MissingChunks, now: float = 0.0, agent: str = AGENT, left: int = 0) -> Sent | None:
    return kept.find(agent, ask, left, now)


def test_an_ask_is_answered_with_those_pieces_of_the_message_as_it_was_cut() -> None:
    kept = SentChunks()
    sent = publish()
    ask = keep(kept, sent)
    whole = cut(serialize(sent.message), LIMIT)
    entry = found(kept, ask)
    assert entry is not None
    assert whole is not None
    assert entry.publish == sent
    assert list(kept.pieces(entry, ask, 0.0)) == [whole.piece(1), whole.piece(2)]


def test_an_ask_for_what_was_not_sent_or_was_cut_otherwise_is_not_answered() -> None:
    kept = SentChunks()
    ask = keep(kept, publish())
    assert found(kept, MissingChunks(b"12345678", ask.count, ask.ranges)) is None
    assert found(kept, MissingChunks(ask.message_id, ask.count + 1, ask.ranges)) is None
    assert found(kept, ask) is not None


def test_nobody_gets_pieces_of_what_was_another_agents() -> None:
    kept = SentChunks()
    ask = keep(kept, publish(topic="clinic/08/down/outputs"))
    assert found(kept, ask) is None
    assert found(kept, ask, agent="clinic/08") is not None


def test_pieces_that_are_still_leaving_are_not_sent_twice() -> None:
    kept = SentChunks()
    ask = keep(kept, publish(), out_at_bytes=5_000)
    assert found(kept, ask, left=4_999) is None
    assert found(kept, ask, left=5_000) is not None


def test_answers_rest_and_have_an_end() -> None:
    kept = SentChunks()
    ask = keep(kept, publish())
    everything = MissingChunks(ask.message_id, ask.count, ((0, ask.count),))
    num_answers = 0
    for tick in range(10 * MAX_REPEATS):
        entry = found(kept, everything, tick * SHORTEST_REST_S / 2)
        if entry is not None:
            assert tick == 2 * num_answers
            num_answers += 1
            assert len(list(kept.pieces(entry, everything, tick * SHORTEST_REST_S / 2))) == ask.count
    assert num_answers == MAX_REPEATS
    keep(kept, publish())  # the deadline has sent it as a whole again
    assert found(kept, everything, 100.0) is not None


def test_the_newest_messages_are_kept_within_the_bounds() -> None:
    kept = SentChunks(kept_bytes=10_000)
    asks = [keep(kept, publish(number)) for number in range(8)]
    assert [found(kept, ask) is not None for ask in asks] == [False] * 4 + [True] * 4
    vast = keep(kept, publish(9, num_bytes=20_000))
    assert found(kept, vast) is not None
    assert not any(found(kept, ask) for ask in asks)
    small = SentChunks()
    asks = [keep(small, publish(number)) for number in range(2 * KEPT_MESSAGES)]
    assert sum(found(small, ask) is not None for ask in asks) == KEPT_MESSAGES


def test_a_message_sent_again_counts_once() -> None:
    kept = SentChunks(kept_bytes=5_000)
    other = keep(kept, publish(1))
    for _ in range(10):
        ask = keep(kept, publish(2))
    assert found(kept, ask) is not None
    assert found(kept, other) is not None


def test_what_was_sent_to_an_agent_can_be_forgotten() -> None:
    kept = SentChunks()
    gone, stays = keep(kept, publish(1)), keep(kept, publish(2, topic="clinic/08/down/outputs"))
    kept.forget(AGENT)
    assert found(kept, gone) is None
    assert found(kept, stays, agent="clinic/08") is not None


@pytest.mark.parametrize(
    "ask",
    [
        MissingChunks(b"1234567", 9, ((0, 1),)),
        MissingChunks(b"12345678", 9, ((0, 10),)),
        MissingChunks(b"12345678", 9, ((3, 3),)),
        MissingChunks(b"12345678", 9, ((4, 3),)),
        MissingChunks(b"12345678", 9, ((0, 2), (1, 3))),
        MissingChunks(b"12345678", 9, ((0, 2), (2, 3))),
        MissingChunks(b"12345678", 9, ((4, 5), (0, 1))),
        MissingChunks(b"12345678", 9, ((0, 9),) * 24),
    ],
)
def test_an_ask_out_of_order_is_refused(ask: MissingChunks) -> None:
    with pytest.raises(MalformedMessage):
        check_ask(ask)


@pytest.mark.parametrize("ranges", [(), ((0, 9),), ((0, 1), (2, 3), (8, 9))])
def test_an_ask_in_order_is_taken(ranges: tuple[tuple[int, int], ...]) -> None:
    check_ask(MissingChunks(b"12345678", 9, ranges))
