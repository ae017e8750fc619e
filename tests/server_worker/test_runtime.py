"""The worker's driver, over the in-memory broker in virtual time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cutlayer.broker.errors import BrokerUnreachable, CutlayerError, IdentityTaken, RunError
from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.messages import RunManifest, RunPhase, WorkerState, parse, serialize
from cutlayer.broker.topics import RUN, WorkerTopics, model_chunk
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointNotSaved, CheckpointStore
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.events import (
    AgentCountChanged,
    CheckpointSaved,
    ConnectionChanged,
    PhaseChanged,
    StageTimed,
    WindowCommitted,
)
from cutlayer.server_worker.passes import Forwarded, ForwardItem
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_json import run_json
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.worker_options import WorkerOptions
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset, small_settings
from support.virtual_run import Client, Worker, committed_once, run_until_over
from support.waiting import ends

STATE = WorkerTopics("w0").state


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def network() -> VirtualNetwork:
    return VirtualNetwork(LinkFaults(delay_s=0.01))


def state_of(network: VirtualNetwork, topic: str = STATE) -> WorkerState:
    state = parse(network.broker.retained[topic].payload)
    assert isinstance(state, WorkerState)
    return state


def serve(network: VirtualNetwork, worker: Worker) -> None:
    network.run(lambda: RUN in network.broker.retained and STATE in network.broker.retained)
    del worker


def test_worker_announces_run_model_and_itself(network: VirtualNetwork) -> None:
    worker = Worker(network, small_settings())
    serve(network, worker)
    manifest = parse(network.broker.retained[RUN].payload)
    assert isinstance(manifest, RunManifest)
    assert manifest.document == worker.manifest.to_bytes()
    assert model_chunk(worker.manifest.tokenizers.digest, 0) in network.broker.retained
    state = state_of(network)
    assert (state.online, state.phase, state.manifest_digest.hex()) == (
        True,
        RunPhase.WAITING,
        worker.manifest.digest(),
    )


def test_run_that_has_ended_leaves_nothing_retained_but_states(network: VirtualNetwork) -> None:
    worker = Worker(network, small_settings())
    run_until_over(network, worker, [network.add_agent("site/0", small_dataset(0))])
    network.run(lambda: not state_of(network).online)
    assert set(network.broker.retained) == {STATE, "site/0/state"}
    state = state_of(network)
    assert (state.phase, state.reason) == (RunPhase.ENDED, "all agents have done their epochs")


def test_worker_that_is_stopped_before_the_end_leaves_the_run_announced(network: VirtualNetwork) -> None:
    worker = Worker(network, small_settings(run={"min_agents": 2}))
    serve(network, worker)
    worker.runtime.stop()
    network.run(lambda: not state_of(network).online)
    assert RUN in network.broker.retained


def test_broker_that_forgot_everything_is_told_again(network: VirtualNetwork) -> None:
    worker = Worker(network, small_settings())
    serve(network, worker)
    network.broker.stop()
    assert RUN not in network.broker.retained
    network.broker.start()
    serve(network, worker)
    assert model_chunk(worker.manifest.tokenizers.digest, 0) in network.broker.retained


def test_events_tell_the_run_in_order(network: VirtualNetwork) -> None:
    worker = Worker(network, small_settings())
    run_until_over(network, worker, [network.add_agent("site/0", small_dataset(0, 16))])
    assert worker.events[0] == ConnectionChanged(is_connected=True)
    phases = [event.phase for event in worker.events if isinstance(event, PhaseChanged)]
    assert phases == [RunPhase.TRAINING, RunPhase.EVALUATING, RunPhase.ENDED]
    windows = [event for event in worker.events if isinstance(event, WindowCommitted)]
    assert [event.window for event in windows] == [event.version for event in windows] == list(range(1, 9))
    assert sum(event.num_samples for event in windows) == 32
    assert [event.num_agents for event in worker.events if isinstance(event, AgentCountChanged)] == [1, 0]
    stages = {event.stage for event in worker.events if isinstance(event, StageTimed)}
    assert stages == {"queue", "decode", "forward", "publish", "backward", "commit"}
    assert worker.metric("cutlayer_steps_total") == 8
    assert worker.metric("cutlayer_agents") == 0


def test_run_book_adds_up_over_a_whole_run(network: VirtualNetwork) -> None:
    worker = Worker(network, small_settings())
    agents = [network.add_agent(f"site/{index}", small_dataset(index, 10)) for index in range(2)]
    run_until_over(network, worker, agents)
    moved = worker.book.bytes_moved()
    for direction in ("up", "down"):
        assert 0 < moved[direction]["payload"] <= moved[direction]["wire"]
    rows = {(row["direction"], row["kind"]): row for row in worker.book.traffic()}
    # 4 epochs' worth of samples: 2 of training, and the evaluations: after the first epoch and thrice at the end.
    train = 2 * 2 * 10
    evaluated = 2 * 40 * (1 + 3)
    assert rows["up", "OutputGradients"]["raw_bytes"] == train * 3 * 4
    assert rows["down", "Outputs"]["raw_bytes"] == (train + evaluated) * 3 * 4
    token_bytes = 4 * 16 * 4
    both, single = train + 2 * 40 * 2, 2 * 40 * 2
    assert rows["up", "Activations"]["raw_bytes"] == both * 2 * token_bytes + single * token_bytes
    assert rows["up", "Activations"]["payload_bytes"] >= rows["up", "Activations"]["raw_bytes"], "identity"
    assert moved["up"]["raw"] == sum(row["raw_bytes"] for (side, _), row in rows.items() if side == "up")
    content = run_json(
        worker.book, worker="w0", windows=1, committed_samples=train, duration_s=1.0, training_s=1.0, reason=""
    )
    assert content["steps"] == 2 * 2 * 3
    assert set(content["accuracy"]) == {"joint", "audio", "image"}
    assert [row["epoch"] for row in content["history"]] == [1, 2]


def test_other_worker_on_the_broker_is_left_alone(network: VirtualNetwork) -> None:
    serve(network, Worker(network, small_settings()))
    Worker(network, small_settings(), name="w1")
    with pytest.raises(RunError, match="worker w0 already serves a run on this broker") as caught:
        network.run(lambda: False, max_virtual_s=5.0)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("tells_takeover", [True, False], ids=["the broker tells", "the state tells"])
def test_second_worker_of_the_same_name_ends_the_first(tells_takeover: bool) -> None:
    network = VirtualNetwork()
    network.broker = MemoryBroker(network.clock, tells_takeover=tells_takeover)
    serve(network, Worker(network, small_settings()))
    network._members["older"] = network._members.pop("w0")
    Worker(network, small_settings())
    with pytest.raises(IdentityTaken, match="'w0'") as caught:
        network.run(lambda: False, max_virtual_s=30.0)
    assert caught.value.exit_code == 5


def test_no_broker_is_an_error_that_names_it_and_what_it_said() -> None:
    now = [0.0]
    broker = MemoryBroker(lambda: now[0])
    broker.stop()
    runtime = small_runtime(MemoryTransport(broker, "w0"), CountingEngine(3))
    runtime._clock = lambda: now[0]
    runtime._started_at = 0.0
    runtime.start()
    for now[0] in (0.5, 1.5, 4.9):
        runtime.pump(now[0])
    now[0] = 5.1
    with pytest.raises(BrokerUnreachable, match=r"mqtt://hub: no connection within 5 s \(.*refused\)\n.*--broker"):
        runtime.pump(now[0])


def small_runtime(transport: MemoryTransport, engine: CountingEngine) -> WorkerRuntime:
    worker = Worker(VirtualNetwork(), small_settings())
    return WorkerRuntime(
        transport,
        worker.session,
        engine,
        worker.built.tokenizer_file,
        RunBook(worker.manifest, 0),
        url="mqtt://hub",
        options=WorkerOptions(connect_timeout_s=5.0, claim_s=0.05),
    )


class BrokenEngine(CountingEngine):
    """Fails at the first forward pass."""

    def forward(self, items: Sequence[ForwardItem], candidate: str = "") -> Forwarded:
        """Fail."""
        del items, candidate
        raise RunError("the arithmetic is broken")


def test_worker_that_fails_leaves_its_will() -> None:
    broker = MemoryBroker(time.monotonic)
    runtime = small_runtime(MemoryTransport(broker, "w0"), BrokenEngine(3))
    errors: list[CutlayerError] = []

    def serve_it() -> None:
        try:
            runtime.run(lambda: False)
        except CutlayerError as error:
            errors.append(error)

    agent = AgentRuntime(MemoryTransport(broker, "agent"), "site/0", 1, lambda _: small_dataset(0))
    stop = threading.Event()
    threads = [threading.Thread(target=serve_it), threading.Thread(target=agent.run, args=(stop.is_set,))]
    for thread in threads:
        thread.start()
    assert ends(threads[0].join)
    stop.set()
    assert ends(threads[1].join)
    broker.advance()
    state = parse(broker.retained[STATE].payload)
    assert isinstance(state, WorkerState)
    assert not state.online
    assert [str(error) for error in errors] == ["the arithmetic is broken"]


class DivergedEngine(CountingEngine):
    """Gives no finite output after some windows."""

    def forward(self, items: Sequence[ForwardItem], candidate: str = "") -> Forwarded:
        """Refuse everything once it has diverged."""
        if self.version >= 3:
            return Forwarded(None, self.version, {}, tuple(item.key for item in items))
        return super().forward(items, candidate)


def test_divergence_ends_the_run_with_a_fix(network: VirtualNetwork) -> None:
    worker = Worker(network, small_settings())
    worker.runtime._arithmetic.engine = DivergedEngine(3)
    network.add_agent("site/0", small_dataset(0))
    with pytest.raises(RunError, match="training has diverged: outputs are not finite at version 3") as caught:
        network.run(lambda: worker.runtime.is_finished)
    assert "fix: lower [optimizer] lr" in str(caught.value)


def test_input_that_no_model_can_take_is_no_divergence(network: VirtualNetwork) -> None:
    worker = Worker(network, small_settings(), computes=True)
    zeros = {name: np.zeros((2, 4, 16), np.float32) for name in ("audio", "image")}
    assert worker.runtime._arithmetic._is_sound(ForwardItem("key", "train", zeros))
    engine = worker.runtime._arithmetic.engine
    state = engine.state_dict()
    broken = {name: torch.full_like(weights, float("nan")) for name, weights in state.weights.items()}
    engine.load_state_dict(replace(state, weights=broken))
    assert not worker.runtime._arithmetic._is_sound(ForwardItem("key", "train", zeros))


def test_checkpoints_come_every_so_many_windows_when_training_is_over_and_at_the_end(
    network: VirtualNetwork, tmp_path: Path
) -> None:
    worker = Worker(network, small_settings(), store=CheckpointStore(tmp_path), every_windows=3)
    run_until_over(network, worker, [network.add_agent("site/0", small_dataset(0, 16))])
    assert [event.window for event in worker.events if isinstance(event, CheckpointSaved)] == [3, 6, 8, 8]
    assert worker.metric("cutlayer_checkpoint_window") == 8


def test_full_disk_is_told_and_the_run_goes_on(
    network: VirtualNetwork, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class FullDisk(CheckpointStore):
        def save(self, checkpoint: Checkpoint) -> Path:
            del checkpoint
            raise CheckpointNotSaved(str(tmp_path), "No space left on device")

    worker = Worker(network, small_settings(), store=FullDisk(tmp_path), every_windows=3)
    with caplog.at_level(logging.WARNING, "cutlayer"):
        run_until_over(network, worker, [network.add_agent("site/0", small_dataset(0, 16))])
    assert worker.counter.committed == committed_once({"site/0": 8})
    assert sum("No space left on device" in record.getMessage() for record in caplog.records) == 4


def test_first_refusal_of_a_kind_is_told_and_all_are_counted(
    network: VirtualNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(network, small_settings())
    stranger = Client(network)
    serve(network, worker)
    with caplog.at_level(logging.INFO, "cutlayer.server_worker"):
        for _ in range(50):
            stranger.say(WorkerTopics("w0").inbox_of("a"), b"nonsense")
        run_until_over(network, worker, [network.add_agent("site/0", small_dataset(0))])
    assert worker.metric("cutlayer_rejects_total", side="worker", reason="malformed") == 50
    assert sum("refused (malformed)" in record.getMessage() for record in caplog.records) == 1


def test_state_of_a_stranger_does_not_disturb_a_worker_that_serves(network: VirtualNetwork) -> None:
    worker = Worker(network, small_settings())
    stranger = Client(network)
    serve(network, worker)
    other = WorkerState(True, "w9", 99, bytes(32), RunPhase.TRAINING, agents=0, version=0, reason="")
    stranger.say(WorkerTopics("w9").state, serialize(other))
    run_until_over(network, worker, [network.add_agent("site/0", small_dataset(0))])
