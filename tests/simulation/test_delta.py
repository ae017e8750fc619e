"""Changes of activations: both ends have the same reconstructions, whatever is lost on the way, and fewer bytes go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.broker.faults import NO_FAULTS, LinkFaults
from cutlayer.broker.messages import Activations, Mode
from cutlayer.broker.sample_refs import unpack_bases
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.edge_agent.sample_changes import SampleChanges
from cutlayer.server_worker.activation_store import Fetched, MemoryActivationStore
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.disk_store import DiskActivationStore
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset, small_settings
from support.tapped import TappedBroker
from support.virtual_run import Worker, committed_once, run_until_over

NUM_TRAIN, NUM_TEST, EPOCHS = 24, 40, 4
STEPS = EPOCHS * NUM_TRAIN // 4
SITE = "site/0"
NAMES = ("audio", "image")
LOSSY = LinkFaults(seed=3, loss=0.1, duplication=0.2, reordering=0.3, delay_s=0.02, jitter_s=0.05)


class KeepingStore(MemoryActivationStore):
    """Outlives its run: what is in it can be looked at afterwards."""

    def delete(self) -> None:
        """Keep everything."""


class ForgetfulStore(KeepingStore):
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


class StaleStore(KeepingStore):
    """Has another value than it was given, now and then, under the right count of visits."""

    def __init__(self) -> None:
        super().__init__()
        self.num_wrong = 0

    def get(self, agent: str, samples: NDArray[np.int64], names: Sequence[str]) -> Fetched:
        fetched = super().get(agent, samples, names)
        if self.num_wrong < 3 and not fetched.is_missing.any():
            fetched.tokens[names[0]][0, 0, 0] += 1.0
            self.num_wrong += 1
        return fetched


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> list[SampleChanges]:
    """Return what each agent's process remembers, in the order of their beginning."""
    found: list[SampleChanges] = []
    begin = SampleChanges.__init__

    def noted(self: SampleChanges, num_samples: int, max_bytes: int) -> None:
        begin(self, num_samples, max_bytes)
        found.append(self)

    monkeypatch.setattr(SampleChanges, "__init__", noted)
    return found


def settings_of(num_agents: int = 1, mode: str = "delta") -> RunSettings:
    """Return a run whose agents train their tokenizers and send one microbatch at a time."""
    return small_settings(
        run={"epochs": EPOCHS, "min_agents": num_agents},
        worker={"credits": 1},
        evaluation={"every_epochs": 0},
        codecs={"activations": "lowrank:error=0.05"},
        activations={"mode": mode},
        tokenizers={"mode": "trainable", "every_steps": 2, "every_windows": 2},
        optimizer={"lr": 0.01},
    )


def start(network: VirtualNetwork, num_agents: int = 1) -> list[AgentRuntime]:
    return [
        network.add_agent(f"site/{index}", small_dataset(index, NUM_TRAIN, NUM_TEST)) for index in range(num_agents)
    ]


def assert_same(book: SampleChanges, store: MemoryActivationStore, site: str) -> None:
    """Fail unless a store has what the agent remembers of each sample, bit for bit."""
    samples_B = np.arange(NUM_TRAIN + NUM_TEST)
    fetched = store.get(site, samples_B, NAMES)
    stored_BTD = np.concatenate([fetched.tokens[name] for name in NAMES], axis=1)
    remembered = book.memory.recall(samples_B, stored_BTD.shape[1:])
    assert remembered.is_known_B.all()
    assert not fetched.is_missing.any()
    assert stored_BTD.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(remembered.base_BND.astype(np.float32), stored_BTD)
    np.testing.assert_array_equal(remembered.visits_B, fetched.visits)


def changes_of(messages: Sequence[Activations]) -> int:
    """Return how many samples went up as changes to what was there."""
    return sum(
        int(np.count_nonzero(unpack_bases(message.bases, message.num_samples)[0]))
        for message in messages
        if message.bases
    )


@pytest.mark.slow
@pytest.mark.parametrize("faults", [NO_FAULTS, LOSSY], ids=["perfect", "lossy"])
def test_both_ends_have_the_same_reconstructions(faults: LinkFaults, books: list[SampleChanges]) -> None:
    network, store = VirtualNetwork(faults), KeepingStore()
    tapped = network.broker = TappedBroker(network)
    worker = Worker(network, settings_of(3), computes=True, kept_in=store)
    agents = start(network, 3)
    run_until_over(network, worker, agents)
    assert [worker.session.ledger.of(f"site/{index}").first_missing() for index in range(3)] == [STEPS] * 3
    for index, book in enumerate(books):
        assert_same(book, store, f"site/{index}")
    train = [message for message in tapped.messages(Activations) if message.mode is Mode.TRAIN]
    assert all(message.bases and not message.stored for message in train)
    if faults is NO_FAULTS:
        assert changes_of(train) == 3 * (EPOCHS - 1) * NUM_TRAIN


def bytes_sent(mode: str) -> int:
    network = VirtualNetwork()
    tapped = network.broker = TappedBroker(network)
    worker = Worker(network, settings_of(mode=mode), computes=True, kept_in=MemoryActivationStore())
    run_until_over(network, worker, start(network))
    return sum(
        len(message.bases) + len(message.samples) + sum(len(tensor.data) for _, tensor in message.tensors)
        for message in tapped.messages(Activations)
        if message.mode is Mode.TRAIN
    )


@pytest.mark.slow
def test_changes_take_fewer_bytes_than_activations_of_the_same_codec() -> None:
    assert bytes_sent("delta") < 0.9 * bytes_sent("every-step")


@pytest.mark.parametrize("faults", [NO_FAULTS, LOSSY], ids=["perfect", "lossy"])
def test_a_store_that_loses_samples_gets_them_whole(faults: LinkFaults) -> None:
    network, store = VirtualNetwork(faults), ForgetfulStore()
    worker = Worker(network, settings_of(2), kept_in=store)
    run_until_over(network, worker, start(network, 2))
    assert worker.counter.committed == committed_once({f"site/{index}": STEPS for index in range(2)})
    assert store.num_lost > 20


def test_a_base_that_differs_is_found_out_and_the_sample_goes_whole(books: list[SampleChanges]) -> None:
    network, store = VirtualNetwork(), StaleStore()
    tapped = network.broker = TappedBroker(network)
    worker = Worker(network, settings_of(), kept_in=store)
    run_until_over(network, worker, start(network))
    assert worker.counter.committed == committed_once({SITE: STEPS})
    assert store.num_wrong == 3
    # Each of the three microbatches goes a second time, from zeros.
    assert len(tapped.messages(Activations)) == 3 + STEPS + 3 * NUM_TEST // 4
    assert_same(books[0], store, SITE)


def test_a_store_without_room_has_all_go_whole() -> None:
    network = VirtualNetwork()
    tapped = network.broker = TappedBroker(network)
    worker = Worker(network, settings_of(), kept_in=MemoryActivationStore(max_bytes=10))
    run_until_over(network, worker, start(network))
    assert worker.counter.committed == committed_once({SITE: STEPS})
    assert changes_of(tapped.messages(Activations)) == 0


def test_a_worker_without_a_store_takes_activations_as_they_are() -> None:
    network = VirtualNetwork()
    tapped = network.broker = TappedBroker(network)
    worker = Worker(network, settings_of(), kept_in=None)
    run_until_over(network, worker, start(network))
    assert worker.counter.committed == committed_once({SITE: STEPS})
    assert all(not message.bases and not message.samples for message in tapped.messages(Activations))


def test_a_new_process_of_an_agent_begins_anew(books: list[SampleChanges]) -> None:
    network, store = VirtualNetwork(), KeepingStore()
    worker = Worker(network, settings_of(), kept_in=store)
    start(network)
    network.run(lambda: worker.session.window >= 9)
    network.kill(SITE)
    run_until_over(network, worker, start(network))
    assert worker.counter.committed == committed_once({SITE: STEPS})
    assert len(books) == 2
    assert_same(books[1], store, SITE)


@pytest.mark.parametrize("is_kept", [True, False], ids=["the disk is left", "the disk is lost, too"])
def test_a_worker_that_starts_again_takes_changes(tmp_path: Path, is_kept: bool, books: list[SampleChanges]) -> None:
    def open_store(name: str) -> DiskActivationStore:
        return DiskActivationStore(tmp_path / name, "small-0", max_bytes=10_000_000)

    network, checkpoints = VirtualNetwork(), CheckpointStore(tmp_path / "checkpoints")
    settings = settings_of()
    first = Worker(network, settings, computes=True, store=checkpoints, every_windows=2, kept_in=open_store("a"))
    agents = start(network)
    network.run(lambda: first.session.window >= 9)
    first.kill()
    store = open_store("a" if is_kept else "b")
    second = Worker(network, settings, computes=True, store=checkpoints, resumes=True, every_windows=2, kept_in=store)
    network.run(lambda: second.session.window >= STEPS)
    book = books[0]
    samples_B = np.arange(NUM_TRAIN)
    fetched = store.get(SITE, samples_B, NAMES)
    stored_BTD = np.concatenate([fetched.tokens[name] for name in NAMES], axis=1)
    remembered = book.memory.recall(samples_B, stored_BTD.shape[1:])
    assert remembered.is_known_B.all()
    np.testing.assert_array_equal(remembered.base_BND.astype(np.float32), stored_BTD)
    run_until_over(network, second, agents)
    assert second.session.ledger.of(SITE).first_missing() == STEPS
