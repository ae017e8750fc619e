from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cutlayer.broker.errors import MalformedMessage, ManifestUnsatisfiable, RunError, SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.messages import ModelChunk, RunManifest, RunPhase, WorkerState
from cutlayer.broker.model_chunks import cut_model
from cutlayer.broker.site_optimizer import SiteOptimizer
from cutlayer.broker.topics import RUN, WORKER_STATES, model_chunks
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.enrolment import FIRST_ASK_S, LONGEST_ASK_S, Enrolment
from cutlayer.edge_agent.site_parts import SiteParts
from support.brokers import TRANSPORTS, Backend, transports
from support.small_run import small_dataset
from support.small_side import small_manifest, tokenizer_file


class Noting(MemoryTransport):
    """A transport that notes which topic filters it is asked for."""

    def __init__(self) -> None:
        super().__init__(MemoryBroker(lambda: 0.0), "agent")
        self.asked: list[str] = []

    def subscribe(self, topic_filter: str, *, qos: int = 1, is_optional: bool = False) -> None:
        """Note and subscribe."""
        self.asked.append(topic_filter)
        super().subscribe(topic_filter, qos=qos, is_optional=is_optional)


@pytest.fixture
def transport() -> Noting:
    return Noting()


@pytest.fixture
def enrolment(transport: Noting) -> Enrolment:
    return Enrolment("clinic/07", lambda _: small_dataset(0, 10, 6), transport)


MANIFEST = RunManifest(small_manifest().to_bytes())
OTHER = RunManifest(small_manifest(run_id="other-1").to_bytes())
FILTER = model_chunks(small_manifest().tokenizers.digest)


def test_manifest_and_weights_make_an_agent_ready(enrolment: Enrolment, transport: Noting) -> None:
    assert enrolment.read_manifest(MANIFEST, is_bound=False)
    assert transport.asked == [FILTER]
    *others, last = cut_model(tokenizer_file())
    assert all(enrolment.read_model(chunk) is None for chunk in others)
    enrolled = enrolment.read_model(last)
    assert enrolled is not None
    assert enrolled.manifest == small_manifest()
    assert (enrolled.plan.agent, enrolled.plan.num_train, enrolled.plan.num_test) == ("clinic/07", 10, 6)
    assert enrolment.read_model(last) is None, "once is enough"


def test_weights_before_a_manifest_are_of_no_use(enrolment: Enrolment) -> None:
    assert enrolment.read_model(cut_model(tokenizer_file())[0]) is None


def test_same_manifest_again_is_no_news(enrolment: Enrolment) -> None:
    enrolment.read_manifest(MANIFEST, is_bound=False)
    assert not enrolment.read_manifest(MANIFEST, is_bound=True)


def test_other_manifest_counts_until_the_agent_has_taken_part(enrolment: Enrolment) -> None:
    enrolment.read_manifest(MANIFEST, is_bound=False)
    assert enrolment.read_manifest(OTHER, is_bound=False)
    with pytest.raises(RunError, match="another run"):
        enrolment.read_manifest(MANIFEST, is_bound=True)


def test_manifest_that_is_none_changes_nothing(enrolment: Enrolment) -> None:
    enrolment.read_manifest(MANIFEST, is_bound=False)
    with pytest.raises(MalformedMessage):
        enrolment.read_manifest(RunManifest(b"{}"), is_bound=True)
    assert not enrolment.read_manifest(MANIFEST, is_bound=True)


def wrong_manifest() -> Manifest:
    manifest = small_manifest()
    return manifest.model_copy(update={"task": manifest.task.model_copy(update={"classes": ("cat", "dog")})})


WRONG = wrong_manifest()


def serving(manifest: Manifest, *, online: bool = True, phase: RunPhase = RunPhase.TRAINING) -> WorkerState:
    return WorkerState(online, "w0", 1, bytes.fromhex(manifest.digest()), phase, agents=0, version=0, reason="")


def test_manifest_that_the_data_do_not_fit_is_refused_where_a_worker_serves_it(enrolment: Enrolment) -> None:
    enrolment.take_state(serving(WRONG))
    with pytest.raises(ManifestUnsatisfiable):
        enrolment.read_manifest(RunManifest(WRONG.to_bytes()), is_bound=False)


def test_worker_that_comes_after_its_manifest_ends_an_agent_that_does_not_fit(enrolment: Enrolment) -> None:
    enrolment.read_manifest(RunManifest(WRONG.to_bytes()), is_bound=False)
    enrolment.take_state(serving(small_manifest()))
    enrolment.take_state(serving(WRONG, online=False))
    enrolment.take_state(serving(WRONG, phase=RunPhase.ENDED))
    with pytest.raises(ManifestUnsatisfiable):
        enrolment.take_state(serving(WRONG))


def test_manifest_that_nobody_serves_is_waited_out_and_the_next_one_taken(
    transport: Noting, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[str] = []

    def open_data(manifest: Manifest) -> ArrayDataset:
        opened.append(manifest.run_id)
        if manifest.run_id == WRONG.run_id:
            raise SettingsError("data.csv has none of the run's columns image", "name one")
        return small_dataset(0, 10, 6)

    enrolment = Enrolment("clinic/07", open_data, transport)
    enrolment.wait(0.0)
    for now in (10.0, 100.0):
        enrolment.read_manifest(RunManifest(WRONG.to_bytes()), is_bound=False)
        with caplog.at_level(logging.WARNING, "cutlayer.edge_agent"):
            enrolment.tick(now)
    assert opened == [WRONG.run_id], "the same manifest again is no reason to look at all files again"
    assert caplog.messages == [
        f"run {WRONG.run_id} is announced, no worker serves it, and it does not fit this site "
        "(data.csv has none of the run's columns image); waiting for another run, or for a worker of this one"
    ]
    assert enrolment.read_manifest(OTHER, is_bound=False)
    assert enrolment.read_model(cut_model(tokenizer_file())[0]) is not None
    enrolment.take_state(serving(WRONG))


def test_site_parts_that_a_run_without_workers_lacks_end_no_agent(transport: Noting, tmp_path: Path) -> None:
    manifest = small_manifest().model_copy(update={"head": "alike", "site_optimizer": SiteOptimizer(lr=0.1)})
    missing = SiteParts(head=tmp_path / "no_head.safetensors")
    enrolment = Enrolment("clinic/07", lambda _: small_dataset(0, 10, 6), transport, missing, is_visit=True)
    enrolment.read_manifest(RunManifest(manifest.to_bytes()), is_bound=False)
    assert enrolment.read_model(cut_model(tokenizer_file())[0]) is None
    with pytest.raises(ManifestUnsatisfiable, match="is not there"):
        enrolment.take_state(serving(manifest))


def test_wrong_weights_are_refused_and_the_right_ones_taken_after_them(enrolment: Enrolment) -> None:
    enrolment.read_manifest(MANIFEST, is_bound=False)
    [chunk] = cut_model(tokenizer_file())
    with pytest.raises(MalformedMessage, match="digest"):
        enrolment.read_model(ModelChunk(0, 1, chunk.data[:-1] + b"x"))
    assert enrolment.read_model(chunk) is not None


def test_what_is_missing_is_asked_for_again(enrolment: Enrolment, transport: Noting) -> None:
    enrolment.wait(100.0)
    enrolment.tick(100.0 + FIRST_ASK_S - 0.1)
    assert transport.asked == []
    enrolment.tick(100.0 + FIRST_ASK_S)
    assert transport.asked == [RUN, WORKER_STATES]
    enrolment.read_manifest(MANIFEST, is_bound=False)
    transport.asked.clear()
    enrolment.tick(110.0)
    assert transport.asked == [RUN, WORKER_STATES, FILTER]
    enrolment.read_model(cut_model(tokenizer_file())[0])
    transport.asked.clear()
    enrolment.tick(200.0)
    assert transport.asked == [RUN, WORKER_STATES]


def test_patience_grows_to_its_limit_and_starts_afresh(enrolment: Enrolment) -> None:
    enrolment.wait(0.0)
    for _ in range(20):
        assert enrolment.due_at is not None
        before = enrolment.due_at
        enrolment.tick(before)
    assert enrolment.due_at == before + LONGEST_ASK_S
    enrolment.wait(1_000.0)
    assert enrolment.due_at == 1_000.0 + FIRST_ASK_S


def test_agent_that_is_served_asks_nothing(enrolment: Enrolment, transport: Noting) -> None:
    enrolment.wait(0.0)
    enrolment.stop_waiting()
    enrolment.tick(1e9)
    assert transport.asked == []
    assert enrolment.due_at is None


def test_person_is_told_once_what_the_agent_waits_for(enrolment: Enrolment, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cutlayer.edge_agent"):
        enrolment.wait(0.0)
        enrolment.tick(10.0)
        enrolment.tick(100.0)
        enrolment.read_manifest(MANIFEST, is_bound=False)
        enrolment.tick(200.0)
        enrolment.read_model(cut_model(tokenizer_file())[0])
        enrolment.tick(300.0)
        enrolment.tick(400.0)
    told = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert len(told) == 3
    assert told[0].startswith("no run is announced")
    assert "tokenizers" in told[1]
    assert "worker" in told[2]


@pytest.fixture(scope="module", params=TRANSPORTS)
def backend(request: pytest.FixtureRequest) -> Iterator[Callable[[ExitStack], Backend]]:
    with transports(request.param) as make:
        yield make


def test_broker_sends_again_what_it_retains_when_it_is_asked_again(
    backend: Callable[[ExitStack], Backend],
) -> None:
    with ExitStack() as stack:
        clients = backend(stack)
        worker, agent = clients.client("worker"), clients.client("agent")
        worker.connect()
        worker.transport.publish(RUN, b"the manifest", retain=True)
        worker.delivered()
        agent.connect(None, RUN)
        agent.receive()
        agent.expect_nothing()
        agent.transport.subscribe(RUN)
        assert agent.receive()[0].payload == b"the manifest"
        worker.transport.publish(RUN, b"", retain=True)
        worker.delivered()
