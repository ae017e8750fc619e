"""The agents that a plan is for: with their own data, opened as they would open them, or with mere counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.cli import client_identifier
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.partition import Shard
from cutlayer.simulation.plan import Site
from cutlayer.simulation.plan_exchange import Parties
from cutlayer.simulation.plan_model import PlannedModel
from cutlayer.simulation.plan_tensors import BoundTensors, MeasuredTensors

__all__ = ["MAX_AGENTS", "CountChoice", "DataChoice", "parties_of", "sites_from_counts", "sites_from_data"]

MAX_AGENTS = 10_000
STORE = "0123456789abcdef"
"""As long as a store's name is."""
TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class DataChoice:
    """Which data the agents have.

    Attributes:
        name: Data set.
        options: Its options.
        agents: Agents, a shard each.
    """

    name: str
    options: Mapping[str, object]
    agents: int


@dataclass(frozen=True, slots=True)
class CountChoice:
    """How much data the agents will have.

    Attributes:
        num_train: Training samples of all agents.
        num_test: Test samples of all agents; None for a fifth of the others.
        agents: Agents.
    """

    num_train: int
    num_test: int | None
    agents: int


def sites_from_data(
    model: PlannedModel, choice: DataChoice, *, worker: str, announce: Callable[[str], None]
) -> Iterator[Site]:
    """Open each agent's data.

    Args:
        model: The run's model.
        choice: The data.
        worker: Name of the worker that will serve.
        announce: Told what is being done.

    Raises:
        CutlayerError: When the data cannot be opened or do not fit the run.
    """
    _check_agents(choice.agents)
    for index in range(choice.agents):
        announce(f"agent {index + 1} of {choice.agents}: opening its data, encoding some microbatches")
        shard = Shard(index, choice.agents)
        dataset = open_dataset(choice.name, shard=shard, seed=model.manifest.seed, options=choice.options)
        client = ClientSide(model.manifest, model.tokenizer_file, dataset)
        tensors = MeasuredTensors(model.manifest, client, model.forward)
        yield Site(
            parties_of(f"clinic/{index:02d}", worker, is_kept=model.manifest.activations != "every-step"),
            dataset.num_samples("train"),
            dataset.num_samples("test"),
            tensors,
            tensors.seconds,
        )


def sites_from_counts(model: PlannedModel, choice: CountChoice, *, worker: str) -> Iterator[Site]:
    """Divide so many samples over agents evenly.

    Args:
        model: The run's model.
        choice: How many.
        worker: Name of the worker that will serve.

    Raises:
        SettingsError: When there are fewer samples than agents.
    """
    agents = choice.agents
    _check_agents(agents)
    if choice.num_train < agents:
        raise SettingsError(f"--samples {choice.num_train} for {agents} agents", "give each agent at least one")
    tests = round(choice.num_train * TEST_SHARE) if choice.num_test is None else choice.num_test
    for index in range(agents):
        yield Site(
            parties_of(f"clinic/{index:02d}", worker, is_kept=model.manifest.activations != "every-step"),
            choice.num_train // agents + (index < choice.num_train % agents),
            tests // agents + (index < tests % agents),
            BoundTensors(model.manifest),
        )


def parties_of(agent: str, worker: str, *, is_kept: bool) -> Parties:
    """Return who talks, where an agent's process starts now."""
    incarnation = time.time_ns() // 1_000_000
    return Parties(agent, worker, client_identifier(agent, incarnation), incarnation, STORE if is_kept else "")


def _check_agents(agents: int) -> None:
    if not 1 <= agents <= MAX_AGENTS:
        raise SettingsError(f"--agents {agents}", f"use 1 to {MAX_AGENTS}")
