"""The agents that a plan is for: with their own data, opened as they would open them, or with mere counts.

Where tokenizers are trained, sizes are those of a short trial of the training: `try_out`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.cli import client_identifier
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.partition import Shard
from cutlayer.edge_agent.validation import num_set_aside, num_validation_samples, with_validation
from cutlayer.simulation.plan import Site
from cutlayer.simulation.plan_exchange import Parties
from cutlayer.simulation.plan_model import PlannedModel
from cutlayer.simulation.plan_rehearsal import Cadence
from cutlayer.simulation.plan_tensors import BoundTensors, MeasuredTensors, has_fixed_size
from cutlayer.simulation.plan_trial import Member, Trial, train

__all__ = [
    "MAX_AGENTS",
    "CountChoice",
    "DataChoice",
    "parties_of",
    "site_of",
    "sites_from_counts",
    "sites_from_data",
    "trial_windows",
    "try_out",
]

MAX_AGENTS = 10_000
STORE = "0123456789abcdef"
"""As long as a store's name is."""
TEST_SHARE = 0.2
TRIAL_S, FEWEST_WINDOWS = 20.0, 2
"""How long a trial takes here, about, and how many windows it has in any case."""
FORWARD_TO_STEP = 3.0


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
        dataset = open_dataset(
            choice.name, shard=shard, seed=model.manifest.seed, options=choice.options, manifest=model.manifest
        )
        yield site_of(
            model,
            parties_of(f"clinic/{index:02d}", worker, is_kept=model.manifest.activations != "every-step"),
            dataset,
        )


def site_of(model: PlannedModel, parties: Parties, dataset: Dataset) -> Site:
    """Return an agent with data of its own."""
    manifest = model.manifest
    if manifest.evaluation.selects:
        dataset = with_validation(dataset, manifest, parties.agent)
    num_train, num_test = dataset.num_samples("train"), dataset.num_samples("test")
    num_val = num_validation_samples(dataset) if manifest.evaluation.selects else 0
    tensors = MeasuredTensors(
        manifest,
        ClientSide(manifest, model.tokenizer_file, dataset),
        model.forward,
        EpochPlan(
            manifest.seed, parties.agent, manifest.epochs, num_train, num_test, manifest.microbatch_samples, num_val
        ),
        dropout=model.settings.model.modality_dropout,
    )
    return Site(parties, num_train, num_test, tensors, tensors.seconds, num_val)


def trial_windows(model: PlannedModel, forward_s: float) -> int:
    """Return how many windows a trial has time for, with so many seconds for a sample's forward pass."""
    return max(int(TRIAL_S / (FORWARD_TO_STEP * max(forward_s, 1e-9) * model.manifest.window.samples)), FEWEST_WINDOWS)


def try_out(model: PlannedModel, sites: Sequence[Site], cadence: Cadence, num_windows: int) -> Trial | None:
    """Train the first windows of a run, where sizes depend on it, and let the sites know.

    Args:
        model: The run's model, whose tokenizers are trained.
        sites: Its agents.
        cadence: How many windows the run has.
        num_windows: How many windows to train at the most.

    Returns:
        The trial; None where no site has data, or all sizes are fixed.
    """
    own = [site.tensors for site in sites if isinstance(site.tensors, MeasuredTensors)]
    codecs = model.manifest.codecs
    moving = (codecs.activations, codecs.activation_gradients, codecs.output_gradients)
    if not own or all(has_fixed_size(name) for name in moving):
        return None
    members = [Member(tensors.plan, tensors.client) for tensors in own]
    trial = train(
        model.settings,
        model.manifest,
        model.engine(),
        members,
        num_windows=min(num_windows, round(cadence.num_windows)),
        run_windows=cadence.num_windows,
    )
    for tensors in own:
        tensors.trial = trial
    return trial


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
        num_train = choice.num_train // agents + (index < choice.num_train % agents)
        num_val = num_set_aside(model.manifest, num_train)
        yield Site(
            parties_of(f"clinic/{index:02d}", worker, is_kept=model.manifest.activations != "every-step"),
            num_train - num_val,
            tests // agents + (index < tests % agents),
            BoundTensors(model.manifest),
            num_val=num_val,
        )


def parties_of(agent: str, worker: str, *, is_kept: bool) -> Parties:
    """Return who talks, where an agent's process starts now."""
    incarnation = time.time_ns() // 1_000_000
    return Parties(agent, worker, client_identifier(agent, incarnation), incarnation, STORE if is_kept else "")


def _check_agents(agents: int) -> None:
    if not 1 <= agents <= MAX_AGENTS:
        raise SettingsError(f"--agents {agents}", f"use 1 to {MAX_AGENTS}")
