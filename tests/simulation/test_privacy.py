"""What leaves a site: every publish, will, metric and log line of a whole run, searched for what may not be in it."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from prometheus_client import generate_latest

from cutlayer.broker.chunking import Reassembler
from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.memory_broker import Connection, MemoryBroker, Publish
from cutlayer.broker.messages import (
    MESSAGE_TYPES,
    ActivationGradients,
    Activations,
    EncodedTensor,
    Goodbye,
    Hello,
    Message,
    OutputGradients,
    Outputs,
    Telemetry,
)
from cutlayer.broker.telemetry import MIN_REPORTED_SAMPLES
from cutlayer.broker.tensors import decode_tensor
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.tokenizers import load_tokenizers
from cutlayer.simulation.virtual import VirtualNetwork, is_retained_topic
from support.small_run import CLASSES, small_dataset, small_settings
from support.virtual_run import Worker, run_until_over

SECRET_NAME = "ward-7-ultrasound"
SITES = {"site/0": 50, "site/1": 90, "site/2": 20}
MICROBATCH = 16
LINK = LinkFaults(delay_s=0.01)
TOPICS = re.compile(
    r"site/\d/(state|up/telemetry|up/w0/(activations|gradients)|down/(outputs|gradients|control))"
    r"|cutlayer/(run|model/[0-9a-f]{64}/\d+|workers/w0/(state|inbox/site/\d))"
)


class TappedBroker(MemoryBroker):
    """Keeps everything that anybody publishes, and every will."""

    def __init__(self, network: VirtualNetwork) -> None:
        super().__init__(network.clock, max_packet_bytes=4_000, up=LINK, down=LINK, exempt=is_retained_topic)
        self.seen: list[tuple[str, bytes]] = []

    def publish(self, packet: Publish) -> None:
        """Take a PUBLISH."""
        self.seen.append((packet.topic, packet.payload))
        super().publish(packet)

    def accept(self, connection: Connection) -> None:
        """Take a CONNECT."""
        if connection.will is not None:
            self.seen.append((connection.will.topic, connection.will.payload))
        super().accept(connection)


@dataclass
class Recorded:
    """A whole run, and all that left its sites."""

    sites: dict[str, ArrayDataset]
    worker: Worker
    packets: list[tuple[str, bytes]]
    messages: list[tuple[str, Message]]
    log_lines: list[str]

    @property
    def everything(self) -> bytes:
        texts = [generate_latest(self.worker.metrics.registry), "\n".join(self.log_lines).encode()]
        return b"\0".join([*(topic.encode() + b"\0" + payload for topic, payload in self.packets), *texts])

    def plan(self, topic: str) -> EpochPlan:
        run, data = self.worker.manifest, self.sites[topic]
        return EpochPlan(
            run.seed, topic, run.epochs, data.num_samples("train"), data.num_samples("test"), run.microbatch_samples
        )


@pytest.fixture(scope="module", params=["identity", "int8+zstd"])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    """Run three sites to the end, one of them killed and started again on the way."""
    torch.set_num_threads(1)
    codecs = {"activations": request.param, "outputs": "identity", "output_gradients": "identity"}
    settings = small_settings(
        0.02,
        run={"min_agents": 3, "epochs": 3, "microbatch_samples": MICROBATCH},
        window={"mode": "asynchronous", "samples": 40},
        codecs=codecs,
    )
    sites = {
        topic: dataclasses.replace(small_dataset(index, size, 50), name=SECRET_NAME)
        for index, (topic, size) in enumerate(SITES.items())
    }
    lines: list[str] = []
    with LoggedTo(lines):
        network = VirtualNetwork()
        tapped = network.broker = TappedBroker(network)
        worker = Worker(network, settings, computes=True)
        agents = [network.add_agent(topic, data) for topic, data in sites.items()]
        network.run(lambda: worker.session.window >= 4)
        network.kill("site/1")
        agents[1] = network.add_agent("site/1", sites["site/1"])
        run_until_over(network, worker, agents)
    reassembler = Reassembler()
    messages = []
    for topic, payload in tapped.seen:
        message = reassembler.feed(topic, payload) if payload else None
        if message is not None:
            messages.append((topic, message))
    return Recorded(sites, worker, tapped.seen, messages, lines)


class LoggedTo:
    """Collect the log lines of server and broker, as a context manager."""

    def __init__(self, lines: list[str]) -> None:
        self._handler = logging.Handler()
        self._handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
        self._loggers = [logging.getLogger("cutlayer.server_worker"), logging.getLogger("cutlayer.broker")]

    def __enter__(self) -> None:
        for logger in self._loggers:
            logger.addHandler(self._handler)
            logger.setLevel(logging.DEBUG)

    def __exit__(self, *_: object) -> None:
        for logger in self._loggers:
            logger.removeHandler(self._handler)
            logger.setLevel(logging.NOTSET)


def spellings(values: NDArray[Any], *kinds: str) -> Iterator[bytes]:
    """Yield an array's bytes in several types, in either byte order, and as text."""
    for kind, order in itertools.product(kinds, "<>"):
        yield np.asarray(values).astype(order + kind).tobytes()
    flat = np.asarray(values).ravel()
    if flat.dtype.kind in "iu":
        for separator in ("", " ", ",", ", "):
            yield separator.join(str(value) for value in flat).encode()


INTEGERS = ("i1", "i2", "i4", "i8", "f2", "f4", "f8")
FLOATS = ("f2", "f4", "f8")


def assert_absent(recorded: Recorded, secrets: Iterator[bytes]) -> None:
    everything = recorded.everything
    num_secrets = 0
    for secret in secrets:
        assert len(secret) >= 8, "a shorter one is found by chance"
        assert secret not in everything
        num_secrets += 1
    assert num_secrets > 50


def test_the_search_finds_what_is_there(recorded: Recorded) -> None:
    assert len(recorded.packets) > 100
    assert "site/1/state" in {topic for topic, _ in recorded.packets}
    assert recorded.worker.manifest.run_id.encode() in recorded.everything
    assert b"cutlayer_windows_total" in recorded.everything
    assert any("joined with" in line for line in recorded.log_lines)
    kinds = {type(message) for _, message in recorded.messages}
    assert {Activations, Outputs, OutputGradients, ActivationGradients, Telemetry, Goodbye} <= kinds


def test_no_label_leaves_a_site(recorded: Recorded) -> None:
    def secrets() -> Iterator[bytes]:
        for topic, data in recorded.sites.items():
            plan = recorded.plan(topic)
            for split in ("train", "test"):
                labels_B = data.splits[split].targets
                orders = [np.arange(len(labels_B)), *plan.test_batches(len(labels_B))]
                if split == "train":
                    orders = [np.arange(len(labels_B)), *(plan.train_indices(step) for step in range(plan.total_steps))]
                for order in orders:
                    if len(order) >= 10:
                        yield from spellings(labels_B[order], *INTEGERS)
                        yield from spellings(np.eye(len(CLASSES), dtype=np.int64)[labels_B[order]], *INTEGERS)

    assert_absent(recorded, secrets())


def test_no_pixel_and_no_sound_leaves_a_site(recorded: Recorded) -> None:
    def secrets() -> Iterator[bytes]:
        for data in recorded.sites.values():
            for split in ("train", "test"):
                inputs = data.splits[split].inputs
                for image in inputs["image"]:
                    yield from spellings(image, "u1", "i2", "i4", "i8", *FLOATS)
                    yield from spellings(image / 255, *FLOATS)
                for waveform in inputs["audio"]:
                    yield from spellings(waveform, *FLOATS)
                    yield from spellings(np.rint(waveform * 32_767).astype(np.int16), "i2", "i4")

    assert_absent(recorded, secrets())


def test_no_patch_and_no_spectrogram_leaves_a_site(recorded: Recorded) -> None:
    tokenizers = load_tokenizers(recorded.worker.manifest.modalities, recorded.worker.built.tokenizer_file)

    def secrets() -> Iterator[bytes]:
        for data in recorded.sites.values():
            for split, (name, tokenizer) in itertools.product(("train", "test"), tokenizers.items()):
                patches_BNP = tokenizer.features(data.splits[split].inputs[name])  # type: ignore[index]
                for patch_P in patches_BNP.reshape(-1, patches_BNP.shape[-1]):
                    if np.ptp(patch_P) > 0:  # a constant patch is found by chance
                        yield from spellings(patch_P, *FLOATS)

    assert_absent(recorded, secrets())


def test_no_sample_number_leaves_a_site(recorded: Recorded) -> None:
    def secrets() -> Iterator[bytes]:
        for topic in recorded.sites:
            plan = recorded.plan(topic)
            for order in [*(plan.train_indices(step) for step in range(plan.total_steps)), *plan.test_batches(50)]:
                if len(order) >= 8:
                    yield from spellings(order, "i1", "i2", "i4", "i8")

    assert_absent(recorded, secrets())


def test_no_name_of_anything_private_leaves_a_site(recorded: Recorded) -> None:
    assert SECRET_NAME.encode() not in recorded.everything
    assert all(TOPICS.fullmatch(topic) for topic, _ in recorded.packets)


def test_no_loss_of_a_single_sample_leaves_a_site(recorded: Recorded) -> None:
    # Outputs are known to server and agent alike; with the labels they give each sample's loss.
    def secrets() -> Iterator[bytes]:
        for topic, message in recorded.messages:
            if isinstance(message, Outputs):
                agent = topic.removesuffix("/down/outputs")
                plan, data = recorded.plan(agent), recorded.sites[agent]
                outputs_BC = decode_tensor(message.outputs, what="outputs").astype(np.float64)
                normalizer_B = np.log(np.exp(outputs_BC).sum(axis=1))
                if message.mode != "train":
                    continue
                labels_B = data.splits["train"].targets[plan.train_indices(message.step)]
                losses_B = normalizer_B - outputs_BC[np.arange(len(labels_B)), labels_B]
                for loss in losses_B:
                    yield from spellings(np.array([loss]), "f8")
                if len(losses_B) > 1:
                    yield from spellings(losses_B, "f4")

    assert_absent(recorded, secrets())


def reports(recorded: Recorded) -> dict[tuple[str, int], list[Telemetry]]:
    found: dict[tuple[str, int], dict[int, Telemetry]] = {}
    agents = {message.incarnation: message.agent for _, message in recorded.messages if isinstance(message, Hello)}
    for _, message in recorded.messages:
        entry = message.telemetry if isinstance(message, Goodbye) else message
        if isinstance(entry, Telemetry):
            found.setdefault((agents[entry.incarnation], entry.incarnation), {})[entry.sequence] = entry
    return {key: [entries[number] for number in sorted(entries)] for key, entries in found.items()}


def test_no_reported_sum_covers_few_samples_nor_does_the_difference_of_two(recorded: Recorded) -> None:
    processes = reports(recorded)
    assert len(processes) == len(SITES) + 1, "one site was started anew"
    for entries in processes.values():
        assert len(entries) > 2
        for entry in entries:
            sums = [entry.train, entry.recent, *(evaluation.sums for evaluation in entry.evaluations)]
            for one in sums:
                assert one.num_samples == 0 or one.num_samples >= MIN_REPORTED_SAMPLES
                assert one.num_samples or not (one.loss_sum or one.num_correct)
        for earlier, later in itertools.combinations(entries, 2):
            difference = later.train.num_samples - earlier.train.num_samples
            assert difference == 0 or difference >= MIN_REPORTED_SAMPLES
            if not difference:
                assert later.train == earlier.train


def test_site_with_few_samples_reports_no_loss_before_it_has_seen_enough(recorded: Recorded) -> None:
    for (agent, _), entries in reports(recorded).items():
        if agent == "site/2":
            assert [entry.samples for entry in entries if entry.samples < MIN_REPORTED_SAMPLES] != []
            assert all(entry.train.num_samples <= entry.samples + MICROBATCH * 2 for entry in entries)


NUMBER_LISTS = {
    "EncodedTensor.shape",
    "MetricSums.sums",
    "MissingChunks.ranges",
    "SeriesDistribution.counts",
    "StageTime.buckets",
    "Telemetry.rejects_by",
    "Telemetry.round_trips",
    "Welcome.committed",
}
PROMETHEUS_LABELS = {"SeriesDistribution.labels", "SeriesNumber.labels"}
TENSORS = {
    "Activations.tensors",
    "Outputs.outputs",
    "OutputGradients.gradients",
    "OutputGradients.tokenizer_gradients",
    "ActivationGradients.tensors",
    "Candidate.tensors",
    "TokenizerWeights.tensors",
}
BYTES = {
    # Numbers that the agent gives its samples, which mean nothing elsewhere, and bits and counters of those.
    "Activations.bases",
    "Activations.positions",
    "Activations.samples",
    "Activations.stored",
    "Outputs.unkept",
    "Resend.missing",
    "Chunk.data",
    "Chunk.message_id",
    "EncodedTensor.data",
    "Hello.manifest_digest",
    "MissingChunks.message_id",
    "ModelChunk.data",
    "Probe.payload",
    "RunManifest.document",
    "WorkerState.manifest_digest",
}
FLOATS_ALONE = {
    "ActivationGradients.server_s",
    "Busy.retry_after_s",
    "MetricSums.loss_sum",
    "Outputs.server_s",
    "Probe.sent_at",
    "ProbeAnswer.answered_at",
    "ProbeAnswer.sent_at",
    "SeriesDistribution.total",
    "SeriesNumber.value",
    "StageTime.seconds",
    "Telemetry.cpu_s",
    "Telemetry.paced_s",
    "Welcome.lease_s",
    "WorkerReport.every_s",
}


def schema() -> Iterator[tuple[str, Any]]:
    """Yield each field of each message and of each record in it, with its type."""
    left: list[type[Any]] = list(MESSAGE_TYPES.values())
    known: set[type[Any]] = set()
    while left:
        kind = left.pop()
        if kind in known:
            continue
        known.add(kind)
        hints = typing.get_type_hints(kind)
        for entry in dataclasses.fields(kind):
            yield f"{kind.__name__}.{entry.name}", hints[entry.name]
            left += [
                part for part in parts(hints[entry.name]) if isinstance(part, type) and dataclasses.is_dataclass(part)
            ]


def parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in typing.get_args(annotation):
        yield from parts(argument)


def test_no_field_of_any_message_could_carry_labels_or_samples() -> None:
    fields = dict(schema())
    assert {name for name, kind in fields.items() if EncodedTensor in parts(kind)} == TENSORS
    assert {name for name, kind in fields.items() if bytes in parts(kind)} == BYTES
    assert {name for name, kind in fields.items() if kind is float} == FLOATS_ALONE
    lists = {name for name, kind in fields.items() if typing.get_origin(kind) is tuple}
    numbers = {name for name in lists if {int, float} & set(parts(fields[name])) and name not in TENSORS}
    assert numbers == NUMBER_LISTS
    telling = re.compile(r"label|target|truth|sample_id|pixel|image|audio|wave|patient|file|path|index(?!$)")
    assert not [name for name in fields if telling.search(name) and name not in PROMETHEUS_LABELS]
