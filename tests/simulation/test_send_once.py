"""Activations go up once: later epochs refer to them, whatever store, worker, link or process is lost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.broker.faults import NO_FAULTS, LinkFaults
from cutlayer.broker.messages import Activations, Direction, Mode
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.activation_store import ActivationStore, Fetched, MemoryActivationStore
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.disk_store import DiskActivationStore
from cutlayer.server_worker.events import ActivationsAssembled
from cutlayer.server_worker.memory_pool import MemoryLighthouse
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset, small_settings
from support.tapped import TappedBroker
from support.virtual_run import Worker, committed_once, run_until_over

NUM_TRAIN, NUM_TEST, EPOCHS = 24, 40, 4
STEPS = EPOCHS * NUM_TRAIN // 4
SITE = "site/0"
SAMPLE_BYTES = 2 * 4 * 16 * 4
"""Two modalities of four tokens of width 16, as float32."""
LOSSY = LinkFaults(seed=3, loss=0.1, duplication=0.2, reordering=0.3, delay_s=0.02, jitter_s=0.05)


def settings_of(num_agents: int = 1, **activations: object) -> RunSettings:
    """Return a run whose agents send one microbatch at a time, so that each is answered before the next goes."""
    return small_settings(
        run={"epochs": EPOCHS, "min_agents": num_agents},
        worker={"credits": 1},
        evaluation={"every_epochs": 0},
        activations={"mode": "once", **activations},
    )


def start(
    network: VirtualNetwork, worker: Worker, num_agents: int = 1, *, may_be_kept: bool = True
) -> list[AgentRuntime]:
    del worker
    return [
        network.add_agent(f"site/{index}", small_dataset(index, NUM_TRAIN, NUM_TEST), may_be_kept=may_be_kept)
        for index in range(num_agents)
    ]


def samples_of(worker: Worker) -> tuple[int, int]:
    """Return how many samples came as tensors, and how many from the store."""
    events = [event for event in worker.events if isinstance(event, ActivationsAssembled)]
    return sum(event.num_fresh for event in events), sum(event.num_stored for event in events)


def test_each_sample_goes_up_once() -> None:
    network, store = VirtualNetwork(), MemoryActivationStore()
    tapped = network.broker = TappedBroker(network)
    worker = Worker(network, settings_of(), kept_in=store)
    run_until_over(network, worker, start(network, worker))
    evaluations = 3 * NUM_TEST  # with both modalities, and with each alone
    assert samples_of(worker) == (NUM_TRAIN + NUM_TEST, (EPOCHS - 1) * NUM_TRAIN + evaluations - NUM_TEST)
    later = [message for message in tapped.messages(Activations) if message.mode is Mode.TRAIN and message.step >= 6]
    assert len(later) == 18
    assert all(not message.tensors and message.from_store == ("audio", "image") for message in later)
    assert max(len(message.samples) for message in later) == 4, "one byte a sample"


def test_the_store_is_empty_when_the_run_has_ended(tmp_path: Path) -> None:
    network = VirtualNetwork()
    store = DiskActivationStore(tmp_path / "activations", "small-0", max_bytes=10_000_000)
    worker = Worker(network, settings_of(), kept_in=store)
    agents = start(network, worker)
    network.run(lambda: worker.session.window >= 8)
    assert store.num_samples == NUM_TRAIN
    run_until_over(network, worker, agents)
    assert not (tmp_path / "activations").exists()


def test_a_site_that_forbids_it_has_nothing_kept_and_names_no_sample() -> None:
    network, store = VirtualNetwork(), MemoryActivationStore()
    tapped = network.broker = TappedBroker(network)
    worker = Worker(network, settings_of(), kept_in=store)
    agents = start(network, worker, may_be_kept=False)
    network.run(lambda: worker.session.window >= 20)
    assert store.num_samples == 0
    run_until_over(network, worker, agents)
    assert samples_of(worker) == (EPOCHS * NUM_TRAIN + 3 * NUM_TEST, 0)
    assert all(not message.samples and not message.stored for message in tapped.messages(Activations))


def test_a_run_that_sends_every_step_keeps_nothing() -> None:
    network, store = VirtualNetwork(), MemoryActivationStore()
    worker = Worker(network, settings_of(mode="every-step"), kept_in=store)
    run_until_over(network, worker, start(network, worker))
    assert samples_of(worker) == (EPOCHS * NUM_TRAIN + 3 * NUM_TEST, 0)


class ForgetfulStore(MemoryActivationStore):
    """Loses every third sample that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.num_lost = 0
        self._num_asked = 0

    def get(self, agent: str, samples: NDArray[np.int64], names: Sequence[str]) -> Fetched:
        fetched = super().get(agent, samples, names)
        for row in range(len(samples)):
            self._num_asked += 1
            if self._num_asked % 3 == 0 and not fetched.is_missing[row]:
                fetched.is_missing[row] = True
                self.num_lost += 1
        return fetched


@pytest.mark.parametrize("faults", [NO_FAULTS, LOSSY], ids=["perfect", "lossy"])
def test_a_missing_sample_is_sent_again_and_nothing_else(faults: LinkFaults) -> None:
    network, store = VirtualNetwork(faults), ForgetfulStore()
    worker = Worker(network, settings_of(3), kept_in=store)
    agents = start(network, worker, 3)
    run_until_over(network, worker, agents)
    assert worker.counter.committed == committed_once({f"site/{index}": STEPS for index in range(3)})
    num_fresh, num_stored = samples_of(worker)
    assert store.num_lost > 20
    if faults is NO_FAULTS:
        # In an evaluation with one modality a lost sample is not kept anew, and is sent once more in the other's.
        assert 0 <= num_fresh - 3 * (NUM_TRAIN + NUM_TEST) - store.num_lost < store.num_lost
        assert num_fresh + num_stored == 3 * (EPOCHS * NUM_TRAIN + 3 * NUM_TEST)


def test_what_the_store_has_no_room_for_is_sent_each_time() -> None:
    network, store = VirtualNetwork(), MemoryActivationStore(max_bytes=10 * SAMPLE_BYTES)
    worker = Worker(network, settings_of(), kept_in=store)
    run_until_over(network, worker, start(network, worker))
    assert samples_of(worker) == (NUM_TRAIN + (EPOCHS - 1) * (NUM_TRAIN - 10) + 3 * NUM_TEST, (EPOCHS - 1) * 10)


def test_a_new_process_sends_its_samples_again() -> None:
    """Its data may be others now."""
    network, store = VirtualNetwork(), MemoryActivationStore()
    worker = Worker(network, settings_of(), kept_in=store)
    agents = start(network, worker)
    network.run(lambda: worker.session.window >= 9)
    network.kill(SITE)
    agents = start(network, worker)
    run_until_over(network, worker, agents)
    assert worker.counter.committed == committed_once({SITE: STEPS})
    num_fresh, _ = samples_of(worker)
    assert 2 * NUM_TRAIN + NUM_TEST - 4 <= num_fresh <= 2 * NUM_TRAIN + NUM_TEST + 4


@pytest.mark.parametrize("is_kept", [True, False], ids=["the disk is left", "the disk is lost, too"])
def test_a_worker_that_starts_again_takes_references(tmp_path: Path, is_kept: bool) -> None:
    def open_store(name: str) -> ActivationStore:
        return DiskActivationStore(tmp_path / name, "small-0", max_bytes=10_000_000)

    network, checkpoints = VirtualNetwork(), CheckpointStore(tmp_path / "checkpoints")
    first = Worker(network, settings_of(), store=checkpoints, every_windows=1, kept_in=open_store("a"))
    agents = start(network, first)
    network.run(lambda: first.session.window >= 8)
    first.kill()
    second = Worker(
        network,
        settings_of(),
        store=checkpoints,
        resumes=True,
        every_windows=1,
        kept_in=open_store("a" if is_kept else "b"),
    )
    run_until_over(network, second, agents)
    assert second.session.ledger.of(SITE).first_missing() == EPOCHS * NUM_TRAIN // 4
    num_fresh, _ = samples_of(second)
    assert num_fresh == NUM_TEST + (0 if is_kept else NUM_TRAIN)


@pytest.mark.parametrize("shares", [True, False], ids=["one store", "a store each"])
def test_workers_of_a_pool_share_a_store_or_have_their_own(shares: bool) -> None:
    network = VirtualNetwork()
    lighthouse = MemoryLighthouse(network.clock)
    stores = [MemoryActivationStore()] * 2 if shares else [MemoryActivationStore(), MemoryActivationStore()]
    workers = [
        Worker(network, settings_of(4), name=name, lighthouse=lighthouse, kept_in=store)
        for name, store in zip(("w0", "w1"), stores, strict=True)
    ]
    agents = start(network, workers[0], 4)
    network.run(lambda: all(agent.is_finished for agent in agents) and all(w.runtime.is_finished for w in workers))
    fresh = [samples_of(worker)[0] for worker in workers]
    stored = [samples_of(worker)[1] for worker in workers]
    num_samples = 4 * (NUM_TRAIN + NUM_TEST)
    assert sum(fresh) + sum(stored) == 4 * (EPOCHS * NUM_TRAIN + 3 * NUM_TEST)
    if shares:
        assert sum(fresh) == num_samples
    else:
        assert num_samples < sum(fresh) <= 2 * num_samples


def test_references_count_as_the_tensors_that_they_stand_for() -> None:
    network = VirtualNetwork()
    worker = Worker(network, settings_of(), kept_in=MemoryActivationStore())
    run_until_over(network, worker, start(network, worker))
    ((_, telemetry),) = worker.book.latest()
    raw = [row for row in telemetry.traffic if row.kind == "Activations" and row.direction is Direction.UP]
    whole = EPOCHS * NUM_TRAIN + NUM_TEST  # evaluations with one modality have half of it each
    assert sum(row.raw_bytes for row in raw) == (whole + NUM_TEST) * SAMPLE_BYTES
    assert {row.codec for row in raw} == {"identity", "store"}


@pytest.mark.parametrize("kind", ["random", "content", "merge"])
@pytest.mark.parametrize("mode", ["once", "every-step"])
def test_fewer_tokens_go_up_and_train(kind: str, mode: str) -> None:
    network = VirtualNetwork()
    tapped = network.broker = TappedBroker(network)
    settings = settings_of(2, mode=mode, reduction={"image": {"kind": kind, "keep": 0.5}})
    worker = Worker(network, settings, computes=True, kept_in=MemoryActivationStore())
    before = [weights.detach().clone() for weights in worker.built.encoder.parameters()]
    agents = start(network, worker, 2)
    run_until_over(network, worker, agents)
    fresh = [message for message in tapped.messages(Activations) if message.tensors]
    shapes = {(name, tensor.shape[1:]) for message in fresh for name, tensor in message.tensors}
    assert shapes == {("audio", (4, 16)), ("image", (2, 16))}
    masks = [mask for message in fresh for name, mask in message.positions if name == "image"]
    assert all(byte.bit_count() == 2 for mask in masks for byte in mask)
    after = list(worker.built.encoder.parameters())
    assert any(not np.array_equal(old.numpy(), new.detach().numpy()) for old, new in zip(before, after, strict=True))
