"""Bytes of every message: golden, there and back, each limit, and whatever anybody may send."""

from __future__ import annotations

import dataclasses
import math
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.broker.agent_workers import MAX_WORKERS
from cutlayer.broker.errors import MalformedMessage, OversizedMessage, WireError, WrongVersion
from cutlayer.broker.messages import (
    MAX_EVALUATIONS,
    MAX_LIST,
    MAX_MESSAGE_BYTES,
    MAX_RANGES,
    MAX_TEXT_BYTES,
    MAX_VALUES,
    MESSAGE_TYPES,
    PROTOCOL_VERSION,
    Direction,
    EncodedTensor,
    Evaluation,
    Goodbye,
    GoodbyeReason,
    Hello,
    MetricSums,
    Mode,
    NegotiatedCodecs,
    RejectReason,
    ResendReason,
    RunPhase,
    SeriesDistribution,
    SeriesNumber,
    StageTime,
    Telemetry,
    Traffic,
    Welcome,
    parse,
    serialize,
)
from cutlayer.broker.worker_session import WorkerLimits
from support.message_values import EXAMPLES, MESSAGES, mutated

SPECIFICATION = (Path(__file__).parents[2] / "broker" / "README.md").read_text(encoding="utf-8")

# The wire format. A change here is a change of the protocol: raise PROTOCOL_VERSION, and say so in broker/README.md.
GOLDEN = {
    "Chunk": "970100c40831323334353637380103ccfac403616263",
    "Hello": "9a0101a9636c696e69632f3037cf0000018bcfe56800c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b"
    "1c1d1e1fcd01c293a86964656e74697479a466703136a4696e743893a46e6f6e65a36c7a34a47a737464ae6375746c6179657220302e312e3"
    "028",
    "Welcome": "9b0102a8776f726b65722d30cf0000018bcfe56800cedeadbeef0294a9696e74382b7a737464a466703136a8667031362b6c7a3"
    "4a86964656e746974799292000792090a01cb404e000000000000b030313233343536373839616263646566",
    "Busy": "950103a8776f726b65722d30cf0000018bcfe56800cb4004000000000000",
    "Reject": "960104a8776f726b65722d30cf0000018bcfe5680003bd737465702039206f6620616e206167656e7420746861742068617"
    "32038",
    "Activations": "9d0105cedeadbeef0c00029292a5617564696f93a9696e74382b7a73746493020304c40301020392a5696d61676593a969"
    "6e74382b7a73746493020304c403010203c4020509c4010190c401029192a5696d616765c4020707a6633066666565",
    "Outputs": "990106cedeadbeef0c0103cb3fc000000000000093a46670313692020ac40400000000c40102",
    "OutputGradients": "970107cedeadbeef0c0393a46670313692020ac401ff9192aa696d6167652e6269617393a9696e74382b7a737464930"
    "20304c403010203",
    "ActivationGradients": "970108cedeadbeef0c05cb3fd000000000000090",
    "TokenizerWeights": "950117cedeadbeef039192aa696d6167652e6269617393a9696e74382b7a73746493020304c403010203",
    "Candidate": "960118cedeadbeef03a66330666665659192aa696d6167652e6269617393a9696e74382b7a73746493020304c403010203",
    "Resend": "970109cedeadbeef0c0000c400",
    "Phase": "95010acedeadbeef02d921616c6c206167656e7473206861766520646f6e652074686569722065706f636873",
    "TrainingDone": "93010bcedeadbeef",
    "Goodbye": "95010ccedeadbeef01dc0018cf0000018bcfe5680007c20228ccc8cd050094cb3ff80000000000001e409292ae747275655f70"
    "6f73697469766573cb405680000000000092a577726f6e67cb404180000000000094cb3fd00000000000001f2090919601ab617564696f2b6"
    "96d616765c394cb4000000000000000324090cd3039a6633066666565919701a74f757470757473a46670313628cdc800cd6590cd6978ce00"
    "0186a0cd7530929200019278279194a8746f6b656e697a6528cb3fe000000000000092925a26925f02010203cb4012000000000000ce043b5"
    "fc0019192a56c656173650304cb3ff8000000000000",
    "Telemetry": "dc001a010dcf0000018bcfe5680007c20228ccc8cd050094cb3ff80000000000001e409292ae747275655f706f7369746976"
    "6573cb405680000000000092a577726f6e67cb404180000000000094cb3fd00000000000001f2090919601ab617564696f2b696d616765c39"
    "4cb4000000000000000324090cd3039a6633066666565919701a74f757470757473a46670313628cdc800cd6590cd6978ce000186a0cd7530"
    "929200019278279194a8746f6b656e697a6528cb3fe000000000000092925a26925f02010203cb4012000000000000ce043b5fc0019192a56"
    "c656173650304cb3ff8000000000000",
    "AgentState": "95010ec3cf0000018bcfe5680000",
    "WorkerState": "9c010fc3a8776f726b65722d30cf0000018bcfe56800c420000000000000000000000000000000000000000000000000000"
    "0000000000000000411a0c200",
    "RunManifest": "930110c40c7b22666f726d6174223a317d",
    "ModelChunk": "9501110102c40777656967687473",
    "WindowState": "980112a8776f726b65722d30cf0000018bcfe56800113091a9636c696e69632f3037c2",
    "MissingChunks": "950113c4083132333435363738cd012c929200019211cd0104",
    "Probe": "950114ce00c0ffeecb41d954fc40100000c40400000000",
    "ProbeAnswer": "960115a8776f726b65722d30ce00c0ffeecb41d954fc40100000cb41d954fc40200000",
    "WorkerReport": "990116a8776f726b65722d30cf0000018bcfe5680009af6469676974732d3031323361626364cb40000000000000009293"
    "af6375746c617965725f6167656e747390cb401000000000000093b26375746c617965725f72756e5f627974657392a27570a3726177cb412"
    "e8480000000009194b66375746c617965725f73746167655f7365636f6e647391a7666f727761726493000301cb3fd0000000000000",
}
KINDS = sorted(GOLDEN)


def test_the_tables_of_these_tests_name_every_kind_of_message() -> None:
    names = {kind.__name__ for kind in MESSAGE_TYPES.values()}
    assert set(GOLDEN) == set(EXAMPLES) == set(MESSAGES) == names


def test_kinds_are_numbered_once_from_zero() -> None:
    assert sorted(MESSAGE_TYPES) == list(range(len(MESSAGE_TYPES)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_specification_names_every_kind_with_its_number_and_all_its_fields(kind: str) -> None:
    (message_type,) = [known for known in MESSAGE_TYPES.values() if known.__name__ == kind]
    (row,) = [line for line in SPECIFICATION.splitlines() if line.startswith(f"| {message_type.KIND} | {kind} |")]
    assert [entry.name for entry in dataclasses.fields(message_type) if entry.name not in row] == []


def test_the_specification_names_every_record_every_choice_and_the_limits() -> None:
    for record in NESTED:
        assert [entry.name for entry in dataclasses.fields(record) if entry.name not in SPECIFICATION] == []
    for choices in (Mode, RunPhase, RejectReason, ResendReason, GoodbyeReason, Direction):
        assert f"enum({', '.join(choices)})" in SPECIFICATION
    for limit in (
        MAX_LIST,
        MAX_VALUES,
        MAX_TEXT_BYTES,
        MAX_MESSAGE_BYTES >> 20,
        MAX_WORKERS,
        WorkerLimits().max_agents,
    ):
        assert f"{limit:,}" in SPECIFICATION
    assert f"format, version {PROTOCOL_VERSION}" in SPECIFICATION


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_has_these_bytes_and_no_others(kind: str) -> None:
    assert serialize(EXAMPLES[kind]).hex() == GOLDEN[kind]
    assert parse(bytes.fromhex(GOLDEN[kind])) == EXAMPLES[kind]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(data=st.data())
def test_every_message_comes_back_as_it_was(kind: str, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    assert parse(serialize(message)) == message


# Limits ------------------------------------------------------------------------------------------------------

U32 = ([0, (1 << 32) - 1], [-1, 1 << 32, True, 1.0, "1", None, []])
U53 = ([0, (1 << 53) - 1], [-1, 1 << 53, True, 1.0, "1", None, []])
NAME = (["", "n" * 64, "ü" * 64], ["n" * 65, 1, None, b"n", "\x00", "\x1b[", "\x9b"])
FLAG = ([True, False], [0, 1, None, "true"])
SUMS = ([[1.5, 0, 1, []]], [[1.5, 0, 1], [math.nan, 0, 1, []], [0.0, -1, 1, []], 1.5, None])
SECONDS = ([0.0, 1.5, 3], [-0.1, math.nan, math.inf, "1", True, None])
TENSOR = ([["fp16", [2], b""]], [["fp16", [2]], ["fp16", 2, b""], ["fp16", [2], "x"], b"", None])
TENSORS = (
    [[], [["image", ["fp16", [2], b""]]] * 16],
    [[["image", ["fp16", [2], b""]]] * 17, [["image"]], [["n" * 65, ["fp16", [2], b""]]], [1], None],
)
PARAMETERS = (
    [[], [["image.bias", ["fp16", [2], b""]]] * 48],
    [[["image.bias", ["fp16", [2], b""]]] * 49, [["image.bias"]], [["n" * 65, ["fp16", [2], b""]]], [1], None],
)
MASK = ([b"", bytes(8_192)], [bytes(8_193), "x", None, 1])
RANGES = ([[], [[0, 1]] * 4_096], [[[0, 1]] * 4_097, [[0]], [[0, -1]], [[0, 1, 2]], [1], None])
WORDS = ([[], ["fp16"] * 64], [["fp16"] * 65, ["n" * 65], [1], "fp16", None])
PHASE = ([0, 3], [4, -1, "training", True, None])
MODE = ([0, 2], [3, -1, "train", True, None])
DETAIL = (["", "d" * 512, "a\nb\tc"], ["d" * 513, 1, None, "\x07"])
NUMBER = ([0.0, -1.5, 3], [math.nan, math.inf, "1", True, None])
CODECS = ([["a", "b", "c", "d"]], [["a", "b", "c"], ["a", "b", "c", "n" * 65], "abcd", None])
DATA = ([b"", b"x" * 1_000], ["x", None, 1, [1]])

LIMITS: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {
    "Chunk": {
        "message_id": ([b"", b"i" * 8], [b"i" * 9, "i", None]),
        "index": ([0, 65_535], [65_536, -1, None]),
        "count": ([0, 65_536], [65_537, -1, None]),
        "total_bytes": ([0, 64 << 20], [(64 << 20) + 1, -1, None]),
        "data": DATA,
    },
    "Hello": {
        "agent": (["", "t" * 256], ["t" * 257, 1, None, "\x00"]),
        "incarnation": U53,
        "manifest_digest": ([b"", b"d" * 32], [b"d" * 33, "d", None]),
        "num_samples": U53,
        "codecs": WORDS,
        "byte_stages": WORDS,
        "software": NAME,
        "num_val": U53,
    },
    "Welcome": {
        "worker": NAME,
        "incarnation": U53,
        "lease": U32,
        "credits": ([0, 1_024], [1_025, -1, None]),
        "codecs": CODECS,
        "committed": RANGES,
        "phase": PHASE,
        "lease_s": SECONDS,
        "store": NAME,
    },
    "Busy": {
        "worker": NAME,
        "incarnation": U53,
        "retry_after_s": ([0, 86_400.0], [86_400.1, -0.1, math.nan, None]),
    },
    "Reject": {"worker": NAME, "incarnation": U53, "reason": PHASE, "detail": DETAIL},
    "Activations": {
        "lease": U32,
        "step": U53,
        "mode": MODE,
        "num_samples": ([0, 65_536], [65_537, -1, None]),
        "tensors": TENSORS,
        "samples": ([b"", bytes(262_144)], [bytes(262_145), "x", None, 1]),
        "stored": MASK,
        "from_store": ([[], ["image"] * 16], [["image"] * 17, ["n" * 65], [1], "image", None]),
        "bases": ([b"", bytes(65_540)], [bytes(65_541), "x", None, 1]),
        "positions": (
            [[], [["image", b"\x01"]] * 16],
            [[["image", b"\x01"]] * 17, [["image"]], [["n" * 65, b""]], [["image", "x"]], [1], None],
        ),
        "candidate": NAME,
    },
    "Outputs": {
        "lease": U32,
        "step": U53,
        "mode": MODE,
        "version": U53,
        "server_s": SECONDS,
        "outputs": TENSOR,
        "unkept": MASK,
    },
    "OutputGradients": {
        "lease": U32,
        "step": U53,
        "version": U53,
        "gradients": TENSOR,
        "tokenizer_gradients": PARAMETERS,
    },
    "ActivationGradients": {"lease": U32, "step": U53, "window": U53, "server_s": SECONDS, "tensors": TENSORS},
    "TokenizerWeights": {"lease": U32, "version": U53, "tensors": PARAMETERS},
    "Candidate": {"lease": U32, "epoch": U32, "name": NAME, "tensors": PARAMETERS},
    "Resend": {
        "lease": U32,
        "step": U53,
        "mode": MODE,
        "reason": ([0, 4], [5, -1, None, True]),
        "missing": MASK,
    },
    "Phase": {"lease": U32, "phase": PHASE, "reason": DETAIL},
    "TrainingDone": {"lease": U32},
    "Goodbye": {"lease": U32, "reason": ([0, 1], [2, -1, None]), "telemetry": ([], [None, [], [1, 2]])},
    "Telemetry": {
        "incarnation": U53,
        "sequence": U53,
        "final": FLAG,
        "epoch": U32,
        "steps": U53,
        "total_steps": U53,
        "samples": U53,
        "train": SUMS,
        "recent": SUMS,
        "evaluations": (
            [[], [[1, "image", False, [0.0, 0, 0, []], 0, ""]] * 4_096],
            [[[1, "image", False, [0.0, 0, 0, []], 0, ""]] * 4_097, [[1]], None],
        ),
        "traffic": (
            [[], [[0, "Hello", "", 1, 2, 3, 4]] * 256],
            [[[0, "Hello", "", 1, 2, 3, 4]] * 257, [[0]], None],
        ),
        "wire_sent_bytes": U53,
        "wire_received_bytes": U53,
        "round_trips": ([[], [[4_096, 1]]], [[[4_097, 1]], [[1]], [[0, 0]] * 4_097, None]),
        "stages": ([[], [["s", 1, 0.5, []]] * 32], [[["s", 1, 0.5, []]] * 33, [["s", 1, 0.5]], None]),
        "resends": U53,
        "duplicates": U53,
        "rejects": U53,
        "cpu_s": SECONDS,
        "peak_rss_bytes": U53,
        "reconnects": U53,
        "rejects_by": ([[], [["lease", 1]] * 64], [[["lease", 1]] * 65, [["lease"]], None]),
        "codec_changes": U53,
        "paced_s": SECONDS,
    },
    "AgentState": {"online": FLAG, "incarnation": U53, "answers": U53},
    "WorkerState": {
        "online": FLAG,
        "worker": NAME,
        "incarnation": U53,
        "manifest_digest": ([b"", b"d" * 32], [b"d" * 33, "d", None]),
        "phase": PHASE,
        "agents": U32,
        "version": U53,
        "reason": DETAIL,
        "is_draining": FLAG,
        "pool_generation": U53,
    },
    "RunManifest": {"document": ([b"", b"x" * 65_536], [b"x" * 65_537, "x", None])},
    "ModelChunk": {
        "index": ([0, 65_535], [65_536, -1, None]),
        "count": ([0, 65_536], [65_537, -1, None]),
        "data": DATA,
    },
    "WindowState": {
        "worker": NAME,
        "incarnation": U53,
        "window": U53,
        "num_samples": U53,
        "agents": ([[], ["clinic/07"] * 4_100], [["x" * 257], [7], None]),
        "closes": FLAG,
    },
    "MissingChunks": {
        "message_id": ([b"", b"x" * 8], [b"x" * 9, "x", None]),
        "count": ([0, 65_536], [65_537, -1, None]),
        "ranges": ([[], [[0, 65_536]] * 24], [[[0, 1]] * 25, [[0, 65_537]], [[0]], [7], None]),
    },
    "Probe": {"nonce": U53, "sent_at": SECONDS, "payload": ([b"", b"x" * 4_096], [b"x" * 4_097, "x", None])},
    "ProbeAnswer": {"worker": NAME, "nonce": U53, "sent_at": SECONDS, "answered_at": SECONDS},
    "WorkerReport": {
        "worker": NAME,
        "incarnation": U53,
        "sequence": U53,
        "run_id": NAME,
        "every_s": SECONDS,
        "numbers": ([[], [["m", [], 0.5]] * 4_096], [[["m", [], 0.5]] * 4_097, [["m", []]], None]),
        "distributions": ([[], [["m", [], [1], 0.5]] * 256], [[["m", [], [1], 0.5]] * 257, [["m", [], [1]]], None]),
    },
}

# Records inside messages: class -> (message, path of list positions to one, fields).
NESTED: dict[type[Any], tuple[str, tuple[int, ...], dict[str, tuple[list[Any], list[Any]]]]] = {
    EncodedTensor: (
        "Outputs",
        (5,),
        {
            "codec": NAME,
            "shape": (
                [[], [0], [1, 1, 1, 1], [65_536, 1_024], [64 << 10, 0, 1_024]],
                [[1] * 5, [65_537], [-1], [65_536, 1_025], [65_536, 0, 65_536], [1.0], [True], 3, None],
            ),
            "data": DATA,
        },
    ),
    MetricSums: (
        "Telemetry",
        (7,),
        {
            "loss_sum": NUMBER,
            "num_correct": U53,
            "num_samples": U53,
            "sums": (
                [[], [["s" * 64, -0.5]] * 256],
                [[["s", 1.0]] * 257, [["s" * 65, 1.0]], [["s", math.nan]], [["s"]], [1.0], None],
            ),
        },
    ),
    Evaluation: (
        "Telemetry",
        (9, 0),
        {
            "epoch": U32,
            "given": (["", "n" * 1_040], ["n" * 1_041, 1, None]),
            "final": FLAG,
            "sums": SUMS,
            "wire_bytes": U53,
            "candidate": NAME,
        },
    ),
    Traffic: (
        "Telemetry",
        (10, 0),
        {
            "direction": ([0, 1], [2, -1, None, "up"]),
            "kind": NAME,
            "codec": NAME,
            "messages": U53,
            "raw_bytes": U53,
            "payload_bytes": U53,
            "wire_bytes": U53,
        },
    ),
    StageTime: (
        "Telemetry",
        (14, 0),
        {"stage": NAME, "count": U53, "seconds": SECONDS, "buckets": ([[], [[4_096, 1]]], [[[4_097, 1]], [[1]], None])},
    ),
    SeriesNumber: (
        "WorkerReport",
        (5, 0),
        {"name": NAME, "labels": ([[], ["x" * 256] * 8], [["x" * 257], ["x"] * 9, None]), "value": NUMBER},
    ),
    SeriesDistribution: (
        "WorkerReport",
        (6, 0),
        {
            "name": NAME,
            "labels": ([[], ["x" * 256] * 8], [["x" * 257], ["x"] * 9, None]),
            "counts": ([[], [1] * 64], [[1] * 65, [-1], None]),
            "total": NUMBER,
        },
    ),
    NegotiatedCodecs: (
        "Welcome",
        (4,),
        {"activations": NAME, "outputs": NAME, "output_gradients": NAME, "activation_gradients": NAME},
    ),
}


def fields_of(kind: str) -> list[Any]:
    """Return version, kind and fields of the example, as MessagePack reads them."""
    values: list[Any] = msgpack.unpackb(serialize(EXAMPLES[kind]), raw=False)
    return values


def test_the_table_of_limits_names_every_field() -> None:
    for kind in MESSAGE_TYPES.values():
        assert list(LIMITS[kind.__name__]) == [entry.name for entry in dataclasses.fields(kind)]
    for record, (_, _, limits) in NESTED.items():
        assert list(limits) == [entry.name for entry in dataclasses.fields(record)]


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in KINDS for field in LIMITS[kind]])
def test_each_field_is_taken_up_to_its_limit_and_refused_by_name_beyond(kind: str, field: str) -> None:
    place = 2 + list(LIMITS[kind]).index(field)
    good, bad = LIMITS[kind][field]
    values = fields_of(kind)
    for value in good:
        values[place] = value
        parse(msgpack.packb(values))
    for value in bad:
        values[place] = value
        with pytest.raises(MalformedMessage, match=rf"^{kind}\.{field}: "):
            parse(msgpack.packb(values))


@pytest.mark.parametrize(
    ("record", "field"), [(record, field) for record, (_, _, limits) in NESTED.items() for field in limits]
)
def test_each_field_of_a_record_inside_a_message_is_limited_too(record: type[Any], field: str) -> None:
    kind, path, limits = NESTED[record]
    values = fields_of(kind)
    inside = values[path[0] + 2]
    for place in path[1:]:
        inside = inside[place]
    good, bad = limits[field]
    place = list(limits).index(field)
    for value in good:
        inside[place] = value
        parse(msgpack.packb(values))
    for value in bad:
        inside[place] = value
        with pytest.raises(MalformedMessage, match=rf"^{kind}\.\w+: {record.__name__}\.{field}: "):
            parse(msgpack.packb(values))


def test_sending_a_field_beyond_its_limit_is_a_value_error_of_ours() -> None:
    with pytest.raises(ValueError, match=r"^Hello\.agent: "):
        serialize(Hello("t" * 257, 1, b"", 1, (), (), ""))


# Version and kind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, 255, 1 << 40])
def test_another_protocol_version_is_refused_before_anything_else_is_looked_at(version: int) -> None:
    with pytest.raises(WrongVersion) as caught:
        parse(msgpack.packb([version, 99, "whatever"]))
    assert (caught.value.got, caught.value.supported) == (version, PROTOCOL_VERSION)


@pytest.mark.parametrize(
    "values",
    [None, 1, "text", b"bytes", [], [1], [None, 1], [1, None], [1, True], [True, 1], [1.0, 1], [1, 18], [1, -1], {}],
)
def test_what_has_no_version_and_known_kind_is_malformed(values: object) -> None:
    with pytest.raises(MalformedMessage):
        parse(msgpack.packb(values))


# Damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_cut_short_at_any_byte_is_malformed(kind: str) -> None:
    whole = bytes.fromhex(GOLDEN[kind])
    for length in range(len(whole)):
        with pytest.raises(MalformedMessage):
            parse(whole[:length])


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_after_a_message_are_malformed(kind: str) -> None:
    with pytest.raises(MalformedMessage):
        parse(bytes.fromhex(GOLDEN[kind]) + b"\x00")


@pytest.mark.parametrize("kind", KINDS)
def test_fields_beyond_the_known_ones_are_ignored(kind: str) -> None:
    later = [*fields_of(kind), "a later minor addition", [1, 2]]
    assert parse(msgpack.packb(later)) == EXAMPLES[kind]


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_wire_errors(data: bytes) -> None:
    try:
        parse(data)
    except WireError:
        return


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(data=st.data())
def test_a_damaged_message_is_either_a_message_or_a_wire_error(kind: str, data: st.DataObject) -> None:
    damaged = data.draw(mutated(bytes.fromhex(GOLDEN[kind])))
    try:
        message = parse(damaged)
    except WireError:
        return
    serialize(message)  # whatever was taken is within its limits


LEAVES = (
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(max_size=9)
)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(LEAVES, inner, max_size=2))


@given(st.integers(0, 17), st.lists(TREES, max_size=22))
def test_fields_of_any_type_raise_nothing_but_wire_errors(kind: int, fields: list[Any]) -> None:
    try:
        parse(msgpack.packb([PROTOCOL_VERSION, kind, *fields]))
    except WireError:
        return


# Memory ------------------------------------------------------------------------------------------------------


def header(length: int) -> bytes:
    """Return the header of a list that announces so many entries."""
    return b"\xdd" + struct.pack(">I", length)


BOMBS = {
    "lists that announce millions": header(20_000) * 1_000 + b"\x00" * 20_000,
    "lists that announce 2^32 - 1": header((1 << 32) - 1) * 100,
    "the longest lists inside one another": header(MAX_LIST) * 1_023,
    "a list of empty lists": header(200_000) + b"\x90" * 200_000,
    "lists of lists of empty lists": header(4_000) + (header(4_000) + b"\x90" * 4_000) * 100,
    "lists of lists of empty maps": header(4_000) + (header(4_000) + b"\x80" * 4_000) * 100,
    "pairs in thousands of lists": header(4_000) + (header(4_000) + b"\x92\x00\x00" * 4_000) * 40,
    "deep nesting": b"\x91" * 500_000,
    "a map that announces millions": b"\xdf\xff\xff\xff\xff" + b"\x00" * 1_000,
    "a text that announces 4 GiB": b"\xdb\xff\xff\xff\xff" + b"a" * 1_000,
    "bytes that announce 4 GiB": b"\xc6\xff\xff\xff\xff" + b"a" * 1_000,
    "an extension that announces 4 GiB": b"\xc9\xff\xff\xff\xff\x05" + b"a" * 1_000,
    "an empty extension": b"\x93\x01\x01\xc7\x00\x05",
    "an empty time stamp": b"\x93\x01\x01\xc7\x00\xff",
    "a long text": b"\x93\x01\x01\xdb" + struct.pack(">I", 100_000) + b"a" * 100_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_within_a_small_multiple_of_its_size(bomb: str) -> None:
    data = BOMBS[bomb]
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            parse(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 * len(data) + 34_000_000


def test_the_largest_message_that_the_limits_of_its_fields_admit_is_taken() -> None:
    telemetry = EXAMPLES["Telemetry"]
    assert isinstance(telemetry, Telemetry)
    largest = dataclasses.replace(
        telemetry,
        evaluations=telemetry.evaluations * MAX_EVALUATIONS,
        traffic=telemetry.traffic * 256,
        round_trips=((1, 1),) * 4_096,
        stages=telemetry.stages * 32,
    )
    assert parse(serialize(largest)) == largest
    goodbye = Goodbye(1, GoodbyeReason.LEFT, largest)
    assert parse(serialize(goodbye)) == goodbye
    welcome = EXAMPLES["Welcome"]
    assert isinstance(welcome, Welcome)
    crowded = dataclasses.replace(welcome, committed=tuple((2 * step, 2 * step + 1) for step in range(MAX_RANGES)))
    assert parse(serialize(crowded)) == crowded


def test_more_values_than_any_message_has_are_refused() -> None:
    with pytest.raises(MalformedMessage, match=f"more than {MAX_VALUES} values"):
        parse(msgpack.packb([PROTOCOL_VERSION, Hello.KIND, [[0] * MAX_LIST] * (MAX_VALUES // MAX_LIST + 1)]))


def test_a_message_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(OversizedMessage) as caught:
        parse(bytes(MAX_MESSAGE_BYTES + 1))
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (MAX_MESSAGE_BYTES + 1, MAX_MESSAGE_BYTES)


def test_a_tensor_that_claims_to_be_vast_is_refused_though_its_data_are_few() -> None:
    values = fields_of("Outputs")
    values[7] = ["identity", [65_536] * 4, b"1234"]
    with pytest.raises(MalformedMessage, match=r"Outputs\.outputs: EncodedTensor\.shape: .*elements"):
        parse(msgpack.packb(values))
