"""One example of every message, and strategies that build every message within its limits."""

from __future__ import annotations

from hypothesis import strategies as st

from cutlayer.broker.messages import (
    MAX_CHUNKS,
    ActivationGradients,
    Activations,
    AgentState,
    Busy,
    Candidate,
    Chunk,
    Direction,
    EncodedTensor,
    Evaluation,
    Goodbye,
    GoodbyeReason,
    Hello,
    Message,
    MetricSums,
    MissingChunks,
    Mode,
    ModelChunk,
    NegotiatedCodecs,
    OutputGradients,
    Outputs,
    Phase,
    Probe,
    ProbeAnswer,
    Reject,
    RejectReason,
    Resend,
    ResendReason,
    RunManifest,
    RunPhase,
    SeriesDistribution,
    SeriesNumber,
    StageTime,
    Telemetry,
    TokenizerWeights,
    Traffic,
    TrainingDone,
    Welcome,
    WindowState,
    WorkerReport,
    WorkerState,
)

TENSOR = EncodedTensor("int8+zstd", (2, 3, 4), b"\x01\x02\x03")
CODECS = NegotiatedCodecs("int8+zstd", "fp16", "fp16+lz4", "identity")
TELEMETRY = Telemetry(
    incarnation=1_700_000_000_000,
    sequence=7,
    final=False,
    epoch=2,
    steps=40,
    total_steps=200,
    samples=1_280,
    train=MetricSums(1.5, 30, 64, (("true_positives", 90.0), ("wrong", 35.0))),
    recent=MetricSums(0.25, 31, 32),
    evaluations=(Evaluation(1, "audio+image", True, MetricSums(2.0, 50, 64), 12_345, "c0ffee"),),
    traffic=(Traffic(Direction.DOWN, "Outputs", "fp16", 40, 51_200, 26_000, 27_000),),
    wire_sent_bytes=100_000,
    wire_received_bytes=30_000,
    round_trips=((0, 1), (120, 39)),
    stages=(StageTime("tokenize", 40, 0.5, ((90, 38), (95, 2))),),
    resends=1,
    duplicates=2,
    rejects=3,
    cpu_s=4.5,
    peak_rss_bytes=71_000_000,
    reconnects=1,
    rejects_by=(("lease", 3),),
    codec_changes=4,
    paced_s=1.5,
)

EXAMPLES: dict[str, Message] = {
    example.__class__.__name__: example
    for example in (
        Chunk(b"12345678", 1, 3, 250, b"abc"),
        Hello(
            "clinic/07",
            1_700_000_000_000,
            bytes(range(32)),
            450,
            ("identity", "fp16", "int8"),
            ("none", "lz4", "zstd"),
            "cutlayer 0.1.0",
            40,
        ),
        Welcome(
            "worker-0",
            1_700_000_000_000,
            0xDEADBEEF,
            2,
            CODECS,
            ((0, 7), (9, 10)),
            RunPhase.TRAINING,
            60.0,
            "0123456789abcdef",
        ),
        Busy("worker-0", 1_700_000_000_000, 2.5),
        Reject("worker-0", 1_700_000_000_000, RejectReason.CONTENT, "step 9 of an agent that has 8"),
        Activations(
            0xDEADBEEF,
            12,
            Mode.TRAIN,
            2,
            (("audio", TENSOR), ("image", TENSOR)),
            b"\x05\x09",
            b"\x01",
            (),
            b"\x02",
            (("image", b"\x07\x07"),),
            "c0ffee",
        ),
        Outputs(0xDEADBEEF, 12, Mode.EVAL, 3, 0.125, EncodedTensor("fp16", (2, 10), b"\x00" * 4), b"\x02"),
        OutputGradients(0xDEADBEEF, 12, 3, EncodedTensor("fp16", (2, 10), b"\xff"), (("image.bias", TENSOR),)),
        ActivationGradients(0xDEADBEEF, 12, 5, 0.25, ()),
        TokenizerWeights(0xDEADBEEF, 3, (("image.bias", TENSOR),)),
        Candidate(0xDEADBEEF, 3, "c0ffee", (("image.bias", TENSOR),)),
        Resend(0xDEADBEEF, 12, Mode.TRAIN, ResendReason.STALE),
        Phase(0xDEADBEEF, RunPhase.EVALUATING, "all agents have done their epochs"),
        TrainingDone(0xDEADBEEF),
        Goodbye(0xDEADBEEF, GoodbyeReason.COMPLETED, TELEMETRY),
        TELEMETRY,
        AgentState(True, 1_700_000_000_000),
        WorkerState(True, "worker-0", 1_700_000_000_000, bytes(32), RunPhase.WAITING, 4, 17, ""),
        RunManifest(b'{"format":1}'),
        ModelChunk(1, 2, b"weights"),
        WindowState("worker-0", 1_700_000_000_000, 17, 48, ("clinic/07",), False),
        MissingChunks(b"12345678", 300, ((0, 1), (17, 260))),
        Probe(0xC0FFEE, 1_700_000_000.25, b"\x00" * 4),
        ProbeAnswer("worker-0", 0xC0FFEE, 1_700_000_000.25, 1_700_000_000.5),
        WorkerReport(
            "worker-0",
            1_700_000_000_000,
            9,
            "digits-0123abcd",
            2.0,
            (SeriesNumber("cutlayer_agents", (), 4.0), SeriesNumber("cutlayer_run_bytes", ("up", "raw"), 1e6)),
            (SeriesDistribution("cutlayer_stage_seconds", ("forward",), (0, 3, 1), 0.25),),
        ),
    )
}

U32S = st.integers(0, (1 << 32) - 1)
U53S = st.integers(0, (1 << 53) - 1)
_CHARACTERS = st.characters(exclude_categories=["Cc", "Cs"])
NAMES = st.text(_CHARACTERS, max_size=64)
SECONDS = st.floats(0, 1e9, allow_nan=False)
DATA = st.binary(max_size=200)
SHAPES = st.one_of(
    st.just(()),
    st.lists(st.integers(0, 90), min_size=1, max_size=4),  # 90 ** 4 elements are within the limit
    st.tuples(st.integers(0, 65_536), st.integers(0, 1_024)),
).map(tuple)
TENSORS = st.builds(EncodedTensor, NAMES, SHAPES, DATA)
NAMED_TENSORS = st.lists(st.tuples(NAMES, TENSORS), max_size=3).map(tuple)
_BUCKETS = st.lists(st.tuples(st.integers(0, 4_096), U53S), max_size=3).map(tuple)
_NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SUMS = st.builds(MetricSums, _NUMBERS, U53S, U53S, st.lists(st.tuples(NAMES, _NUMBERS), max_size=3).map(tuple))
TELEMETRIES = st.builds(
    Telemetry,
    incarnation=U53S,
    sequence=U53S,
    final=st.booleans(),
    epoch=U32S,
    steps=U53S,
    total_steps=U53S,
    samples=U53S,
    train=SUMS,
    recent=SUMS,
    evaluations=st.lists(st.builds(Evaluation, U32S, NAMES, st.booleans(), SUMS, U53S, NAMES), max_size=3).map(tuple),
    traffic=st.lists(
        st.builds(Traffic, st.sampled_from(Direction), NAMES, NAMES, U53S, U53S, U53S, U53S), max_size=3
    ).map(tuple),
    wire_sent_bytes=U53S,
    wire_received_bytes=U53S,
    round_trips=_BUCKETS,
    stages=st.lists(st.builds(StageTime, NAMES, U53S, SECONDS, _BUCKETS), max_size=3).map(tuple),
    resends=U53S,
    duplicates=U53S,
    rejects=U53S,
    cpu_s=SECONDS,
    peak_rss_bytes=U53S,
    reconnects=U53S,
    rejects_by=st.lists(st.tuples(NAMES, U53S), max_size=3).map(tuple),
    codec_changes=U53S,
    paced_s=SECONDS,
)
_WORDS = st.lists(NAMES, max_size=4).map(tuple)
_INDICES = st.integers(0, MAX_CHUNKS - 1)
_COUNTS = st.integers(0, MAX_CHUNKS)
_DETAILS = st.text(_CHARACTERS | st.sampled_from("\n\t"), max_size=512)
_CODECS = st.builds(NegotiatedCodecs, NAMES, NAMES, NAMES, NAMES)
_MODES, _PHASES = st.sampled_from(Mode), st.sampled_from(RunPhase)

MESSAGES: dict[str, st.SearchStrategy[Message]] = {
    "Chunk": st.builds(Chunk, st.binary(max_size=8), _INDICES, _COUNTS, st.integers(0, 64 << 20), DATA),
    "Hello": st.builds(
        Hello, st.text(_CHARACTERS, max_size=256), U53S, st.binary(max_size=32), U53S, _WORDS, _WORDS, NAMES, U53S
    ),
    "Welcome": st.builds(
        Welcome,
        NAMES,
        U53S,
        U32S,
        st.integers(0, 1_024),
        _CODECS,
        st.lists(st.tuples(U53S, U53S), max_size=4).map(tuple),
        _PHASES,
        SECONDS,
        NAMES,
    ),
    "Busy": st.builds(Busy, NAMES, U53S, st.floats(0, 86_400)),
    "Reject": st.builds(Reject, NAMES, U53S, st.sampled_from(RejectReason), _DETAILS),
    "Activations": st.builds(
        Activations,
        U32S,
        U53S,
        _MODES,
        st.integers(0, 65_536),
        NAMED_TENSORS,
        DATA,
        DATA,
        _WORDS,
        DATA,
        st.lists(st.tuples(NAMES, DATA), max_size=3).map(tuple),
        NAMES,
    ),
    "Outputs": st.builds(Outputs, U32S, U53S, _MODES, U53S, SECONDS, TENSORS, DATA),
    "OutputGradients": st.builds(OutputGradients, U32S, U53S, U53S, TENSORS, NAMED_TENSORS),
    "ActivationGradients": st.builds(ActivationGradients, U32S, U53S, U53S, SECONDS, NAMED_TENSORS),
    "TokenizerWeights": st.builds(TokenizerWeights, U32S, U53S, NAMED_TENSORS),
    "Candidate": st.builds(Candidate, U32S, U32S, NAMES, NAMED_TENSORS),
    "Resend": st.builds(Resend, U32S, U53S, _MODES, st.sampled_from(ResendReason), DATA),
    "Phase": st.builds(Phase, U32S, _PHASES, _DETAILS),
    "TrainingDone": st.builds(TrainingDone, U32S),
    "Goodbye": st.builds(Goodbye, U32S, st.sampled_from(GoodbyeReason), TELEMETRIES),
    "Telemetry": TELEMETRIES,
    "AgentState": st.builds(AgentState, st.booleans(), U53S, U53S),
    "WorkerState": st.builds(
        WorkerState,
        st.booleans(),
        NAMES,
        U53S,
        st.binary(max_size=32),
        _PHASES,
        U32S,
        U53S,
        _DETAILS,
        st.booleans(),
        U53S,
    ),
    "RunManifest": st.builds(RunManifest, DATA),
    "ModelChunk": st.builds(ModelChunk, _INDICES, _COUNTS, DATA),
    "WindowState": st.builds(WindowState, NAMES, U53S, U53S, U53S, _WORDS, st.booleans()),
    "MissingChunks": st.builds(
        MissingChunks, st.binary(max_size=8), _COUNTS, st.lists(st.tuples(_COUNTS, _COUNTS), max_size=4).map(tuple)
    ),
    "Probe": st.builds(Probe, U53S, SECONDS, DATA),
    "ProbeAnswer": st.builds(ProbeAnswer, NAMES, U53S, SECONDS, SECONDS),
    "WorkerReport": st.builds(
        WorkerReport,
        NAMES,
        U53S,
        U53S,
        NAMES,
        SECONDS,
        st.lists(st.builds(SeriesNumber, NAMES, _WORDS, SECONDS), max_size=3).map(tuple),
        st.lists(
            st.builds(SeriesDistribution, NAMES, _WORDS, st.lists(U53S, max_size=4).map(tuple), SECONDS), max_size=2
        ).map(tuple),
    ),
}
ANY_MESSAGE = st.one_of(*MESSAGES.values())


def mutated(packet: bytes) -> st.SearchStrategy[bytes]:
    """Return a message's bytes with a few of them replaced, left out or doubled."""

    def change(edits: list[tuple[int, int, int]]) -> bytes:
        changed = bytearray(packet)
        for place, what, value in edits:
            at = place % max(len(changed), 1)
            if what == 0 and changed:
                changed[at] = value
            elif what == 1:
                del changed[at : at + 1 + value % 4]
            elif what == 2:
                changed[at:at] = changed[at : at + 1 + value % 9]
            else:
                changed[at:at] = bytes([value])
        return bytes(changed)

    edit = st.tuples(st.integers(0, 1 << 16), st.integers(0, 3), st.integers(0, 255))
    return st.lists(edit, min_size=1, max_size=6).map(change)
