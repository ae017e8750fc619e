"""Retrieval over the network: sites learn which of their samples belong together, and nobody says so."""

from __future__ import annotations

import numpy as np
import pytest

from cutlayer.broker.manifest import ImageSpec
from cutlayer.broker.messages import Activations, Mode, Outputs
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch, Split
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import SmallWorker, small_settings
from support.tapped import TappedBroker

SPEC = ImageSpec(height=4, width=4, channels=1, patch=2)
NUM_TEST = 60


def pairs(seed: int, num_train: int = 48) -> ArrayDataset:
    """Return drawings, and photographs of the same things: the same pattern, other noise, inverted."""
    rng = np.random.default_rng(seed)

    def split(num_samples: int) -> Batch:
        patterns = rng.uniform(40, 215, (num_samples, 4, 4, 1))
        views = [np.clip(patterns + rng.normal(0, 12, patterns.shape), 0, 255) for _ in range(2)]
        inputs = {"drawing": views[0].astype(np.uint8), "photo": (255 - views[1]).astype(np.uint8)}
        return Batch(inputs, np.zeros(num_samples, np.int64))

    splits: dict[Split, Batch] = {"train": split(num_train), "test": split(NUM_TEST)}
    return ArrayDataset("pairs", (), {"drawing": SPEC, "photo": SPEC}, splits)


def settings_of(negatives: str, epochs: int = 12) -> RunSettings:
    settings = small_settings(
        run={"epochs": epochs, "min_agents": 3, "microbatch_samples": 8},
        model={"fusion": "late"},
        optimizer={"name": "adamw", "lr": 4e-3},
        evaluation={"every_epochs": 0},
    )
    document = settings.model_dump()
    document["modalities"] = {name: SPEC.model_dump() for name in ("drawing", "photo")}
    document["task"] = {"kind": "retrieval", "between": ["drawing", "photo"], "dimensions": 8, "negatives": negatives}
    return RunSettings.model_validate(document)


def trained(settings: RunSettings) -> tuple[SmallWorker, TappedBroker]:
    network = VirtualNetwork()
    tapped = network.broker = TappedBroker(network)
    worker = SmallWorker(network, settings)
    agents = [network.add_agent(f"site/{index}", pairs(index)) for index in range(3)]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    return worker, tapped


@pytest.mark.slow
@pytest.mark.parametrize("negatives", ["window", "agent"])
def test_sites_learn_which_samples_belong_together(negatives: str) -> None:
    worker, tapped = trained(settings_of(negatives))
    finals = [entry for _, report in worker.book.latest() for entry in report.evaluations if entry.final]
    assert [entry.given for entry in finals] == ["drawing+photo"] * 3, "one alone has nothing to be found by"
    assert sum(entry.sums.num_samples for entry in finals) == 3 * NUM_TEST
    found = {
        name: sum(dict(entry.sums.sums)[name] for entry in finals) / (3 * NUM_TEST) for name in ("forth.5", "back.5")
    }
    # By chance five of sixty.
    assert min(found.values()) > 0.2, found
    widths = {message.outputs.shape[1] for message in tapped.messages(Outputs) if message.mode is Mode.TRAIN}
    assert widths == {1 if negatives == "window" else 16}
    assert all(message.modalities == ("drawing", "photo") for message in tapped.messages(Activations))


@pytest.mark.slow
def test_the_loss_that_agents_report_falls() -> None:
    short, long = (trained(settings_of("window", epochs))[0] for epochs in (1, 10))
    means = []
    for worker in (short, long):
        sums = [report.train for _, report in worker.book.latest()]
        means.append(sum(entry.loss_sum for entry in sums) / sum(entry.num_samples for entry in sums))
    assert means[1] < 0.95 * means[0]
