"""Every message of the protocol, and how it becomes bytes. broker/README.md specifies it.

A message is one MessagePack array `[version, kind, field, ...]`, fields in the order in which they are declared. A
receiver refuses another version, an unknown kind and any field outside its limit, and ignores fields beyond those it
knows. No message carries a label, raw data, a loss of a single sample or a name that means something outside the run.

Who sends what, and where it is declared; everybody imports it from here:

    lease_messages.py   agent -> worker   Hello, TrainingDone, Goodbye
                        worker -> agent   Welcome, Busy, Reject, Phase
    step_messages.py    agent -> worker   Activations, OutputGradients
                        worker -> agent   Outputs, ActivationGradients, Resend
    model_messages.py   retained          RunManifest, ModelChunk
                        worker -> agent   TokenizerWeights, Candidate
    state_messages.py   retained          AgentState, WorkerState
                        worker -> worker  WindowState
    link_messages.py    either way        Chunk (a piece of a message that is larger than one packet), MissingChunks
                        agent <-> worker  Probe, ProbeAnswer
    reports.py          agent -> worker   Telemetry
                        worker -> anybody WorkerReport
"""

from __future__ import annotations

from typing import Any

import msgpack

from cutlayer.broker.errors import MalformedMessage, OversizedMessage, WrongVersion
from cutlayer.broker.lease_messages import (
    MAX_RANGES,
    Busy,
    Goodbye,
    GoodbyeReason,
    Hello,
    NegotiatedCodecs,
    Phase,
    Reject,
    RejectReason,
    RunPhase,
    TrainingDone,
    Welcome,
)
from cutlayer.broker.link_messages import MAX_MISSING_RANGES, MAX_PROBE_BYTES, Chunk, MissingChunks, Probe, ProbeAnswer
from cutlayer.broker.model_messages import Candidate, ModelChunk, RunManifest, TokenizerWeights
from cutlayer.broker.reports import (
    MAX_EVALUATIONS,
    MAX_TRAFFIC,
    Direction,
    Evaluation,
    MetricSums,
    SeriesDistribution,
    SeriesNumber,
    StageTime,
    Telemetry,
    Traffic,
    WorkerReport,
)
from cutlayer.broker.state_messages import AgentState, WindowState, WorkerState
from cutlayer.broker.step_messages import (
    MAX_DIMENSION,
    MAX_TENSOR_ELEMENTS,
    ActivationGradients,
    Activations,
    EncodedTensor,
    Mode,
    OutputGradients,
    Outputs,
    Resend,
    ResendReason,
)
from cutlayer.broker.wire import CheckFailed, pack_fields, parse_fields
from cutlayer.broker.wire_limits import (
    MAX_CHUNKS,
    MAX_LIST,
    MAX_MESSAGE_BYTES,
    MAX_PARAMETERS,
    MAX_TEXT_BYTES,
    MAX_VALUES,
)

__all__ = [
    "MAX_CHUNKS",
    "MAX_DIMENSION",
    "MAX_EVALUATIONS",
    "MAX_LIST",
    "MAX_MESSAGE_BYTES",
    "MAX_MISSING_RANGES",
    "MAX_PARAMETERS",
    "MAX_PROBE_BYTES",
    "MAX_RANGES",
    "MAX_TENSOR_ELEMENTS",
    "MAX_TEXT_BYTES",
    "MAX_TRAFFIC",
    "MAX_VALUES",
    "MESSAGE_TYPES",
    "PROTOCOL_VERSION",
    "ActivationGradients",
    "Activations",
    "AgentState",
    "Busy",
    "Candidate",
    "Chunk",
    "Direction",
    "EncodedTensor",
    "Evaluation",
    "Goodbye",
    "GoodbyeReason",
    "Hello",
    "Message",
    "MetricSums",
    "MissingChunks",
    "Mode",
    "ModelChunk",
    "NegotiatedCodecs",
    "OutputGradients",
    "Outputs",
    "Phase",
    "Probe",
    "ProbeAnswer",
    "Reject",
    "RejectReason",
    "Resend",
    "ResendReason",
    "RunManifest",
    "RunPhase",
    "SeriesDistribution",
    "SeriesNumber",
    "StageTime",
    "Telemetry",
    "TokenizerWeights",
    "Traffic",
    "TrainingDone",
    "Welcome",
    "WindowState",
    "WorkerReport",
    "WorkerState",
    "parse",
    "serialize",
]

PROTOCOL_VERSION = 1

Message = (
    Chunk
    | Hello
    | Welcome
    | Busy
    | Reject
    | Activations
    | Outputs
    | OutputGradients
    | ActivationGradients
    | TokenizerWeights
    | Candidate
    | Resend
    | Phase
    | TrainingDone
    | Goodbye
    | Telemetry
    | AgentState
    | WorkerState
    | RunManifest
    | ModelChunk
    | WindowState
    | MissingChunks
    | Probe
    | ProbeAnswer
    | WorkerReport
)

MESSAGE_TYPES: dict[int, type[Message]] = {kind.KIND: kind for kind in Message.__args__}


def serialize(message: Message) -> bytes:
    """Turn a message into bytes.

    Raises:
        ValueError: When a field breaks its own limit; that is a fault of this program.
    """
    packed: bytes = msgpack.packb([PROTOCOL_VERSION, message.KIND, *pack_fields(message)], use_bin_type=True)
    return packed


def parse(data: bytes) -> Message:
    """Turn bytes from a peer into a message.

    Raises:
        OversizedMessage: When there are more than `MAX_MESSAGE_BYTES`.
        WrongVersion: When the protocol version is another.
        MalformedMessage: When they are no MessagePack, of no known kind, or break a field's limit.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise OversizedMessage("message", len(data), MAX_MESSAGE_BYTES)
    try:
        values = _unpack(data)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise MalformedMessage(f"not MessagePack: {type(error).__name__}: {error}") from None
    if not isinstance(values, list) or len(values) < 2:
        raise MalformedMessage("not an array of version, kind and fields")
    version, kind = values[0], values[1]
    if type(version) is not int or type(kind) is not int:
        raise MalformedMessage("version and kind are no integers")
    if version != PROTOCOL_VERSION:
        raise WrongVersion(version, PROTOCOL_VERSION)
    message_type = MESSAGE_TYPES.get(kind)
    if message_type is None:
        raise MalformedMessage(f"unknown message kind {kind}")
    try:
        message: Message = parse_fields(message_type, values[2:])
    except CheckFailed as error:
        raise MalformedMessage(str(error)) from None
    return message


def _unpack(data: bytes) -> Any:
    """Read MessagePack, taking no more memory than a small multiple of what has arrived, and 34 MB.

    A list header of five bytes may announce millions of entries, and an empty list of one byte takes 64: so the
    lengths of lists and texts are limited, and all values are counted. What remains is 1,024 lists inside one
    another, the most that msgpack admits, of `MAX_LIST` places each. No message has a map or an extension type.
    """
    values_left = MAX_VALUES

    def count(values: list[Any]) -> list[Any]:
        nonlocal values_left
        values_left -= 1 + len(values)
        if values_left < 0:
            raise ValueError(f"more than {MAX_VALUES} values")
        return values

    return msgpack.unpackb(
        data,
        raw=False,
        list_hook=count,
        object_hook=_refuse,
        ext_hook=_refuse,
        max_array_len=MAX_LIST,
        max_str_len=MAX_TEXT_BYTES,
        max_map_len=0,
        max_ext_len=0,
    )


def _refuse(*_: object) -> None:
    raise ValueError("a map or an extension type, which no message has")
