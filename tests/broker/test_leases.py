"""The table of leases, the codecs of a lease, and how many steps an agent has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cutlayer.broker.leases import MAX_FORMER, LeaseTable, negotiate_codecs, num_training_steps
from cutlayer.broker.manifest import CodecNames
from cutlayer.broker.messages import Hello, NegotiatedCodecs
from support.conversation import small_manifest

CODECS = NegotiatedCodecs("int8", "fp16", "fp16", "int8")


def hello(agent: str, incarnation: int = 1) -> Hello:
    """Return a Hello of an agent with ten samples."""
    return Hello(agent, incarnation, bytes(32), 10, ("int8",), ("none",), "")


def table(numbers: Iterator[int] | None = None) -> LeaseTable:
    """Return an empty table."""
    drawn = numbers or iter(range(1, 1 << 20))
    return LeaseTable(lambda: next(drawn))


def test_a_lease_is_found_by_its_agent_and_by_its_number() -> None:
    leases = table()
    lease = leases.grant(hello("a"), CODECS, 3, now=5.0)
    assert leases.of("a") is leases.numbered(lease.lease) is lease
    assert (lease.agent, lease.incarnation, lease.num_samples, lease.total_steps, lease.heard_at) == (
        "a",
        1,
        10,
        3,
        5.0,
    )
    assert list(leases) == [lease]
    assert len(leases) == 1


def test_a_new_lease_takes_the_place_of_the_agents_earlier_one() -> None:
    leases = table()
    old = leases.grant(hello("a"), CODECS, 3, now=0.0)
    new = leases.grant(hello("a", 2), CODECS, 3, now=1.0)
    assert new.lease != old.lease
    assert leases.numbered(old.lease) is None
    assert leases.former(old.lease) is old
    assert len(leases) == 1


def test_a_dropped_lease_is_remembered_by_its_number() -> None:
    leases = table()
    lease = leases.grant(hello("a"), CODECS, 3, now=0.0)
    assert leases.drop("a") is lease
    assert leases.drop("a") is None
    assert leases.former(lease.lease) is lease
    assert leases.former(999) is None
    assert not len(leases)


def test_former_leases_are_not_remembered_without_end() -> None:
    leases = table()
    first = leases.grant(hello("a"), CODECS, 3, now=0.0)
    for _ in range(MAX_FORMER + 1):
        leases.grant(hello("a"), CODECS, 3, now=0.0)
    assert leases.former(first.lease) is None


def test_a_number_is_never_used_twice() -> None:
    leases = table(iter([7, 7, 8, 7, 8, 9]))
    assert leases.grant(hello("a"), CODECS, 3, now=0.0).lease == 7
    assert leases.grant(hello("b"), CODECS, 3, now=0.0).lease == 8
    leases.drop("a")
    assert leases.grant(hello("c"), CODECS, 3, now=0.0).lease == 9, "7 may still be in messages under way"


def test_windows_wait_for_those_that_have_steps_left() -> None:
    leases = table()
    first, second = (leases.grant(hello(agent), CODECS, 3, now=0.0) for agent in "ab")
    assert list(leases.training()) == [first, second]
    leases.set_done(first, is_done=True)
    assert list(leases.training()) == [second]
    leases.set_done(first, is_done=False)
    leases.drop("b")
    assert list(leases.training()) == [first]


@pytest.mark.parametrize(("num_samples", "num_steps"), [(0, 0), (1, 3), (4, 3), (5, 6), (8, 6), (9, 9)])
def test_an_epochs_last_microbatch_may_be_smaller(num_samples: int, num_steps: int) -> None:
    assert num_training_steps(small_manifest(epochs=3), num_samples) == num_steps


def test_the_codecs_of_a_lease_are_the_manifests_where_the_agent_knows_them() -> None:
    wanted = CodecNames(activations="int8+zstd:3", outputs="fp16+lz4", output_gradients="fp16")
    assert negotiate_codecs(wanted, ("fp16", "int8"), ("none", "lz4", "zstd")) == NegotiatedCodecs(
        "int8+zstd:3", "fp16+lz4", "fp16", "int8+zstd"
    )


def test_a_byte_stage_that_the_agent_lacks_is_left_out() -> None:
    wanted = CodecNames(activations="int8+zstd:3", outputs="fp16+lz4", output_gradients="fp16")
    assert negotiate_codecs(wanted, ("fp16", "int8"), ("lz4",)) == NegotiatedCodecs("int8", "fp16+lz4", "fp16", "int8")


def test_a_tensor_codec_that_the_agent_lacks_is_not_replaced() -> None:
    with pytest.raises(ValueError, match=r"encodes activations as 'int8.zstd', and the agent knows only fp16"):
        negotiate_codecs(CodecNames(), ("fp16",), ("zstd",))
