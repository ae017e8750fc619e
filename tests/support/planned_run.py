"""Plans of small runs, and the runs they are of: each agent's count of its own connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.mqtt_packets import Protocol
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.activation_store import MemoryActivationStore
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.plan import Conditions, RunPlan, plan_run
from cutlayer.simulation.plan_exchange import Parties
from cutlayer.simulation.plan_model import plan_model
from cutlayer.simulation.plan_rehearsal import rehearse
from cutlayer.simulation.plan_sites import site_of, try_out
from cutlayer.simulation.plan_wire import Link
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset, small_settings
from support.virtual_run import Worker, run_until_over

__all__ = [
    "CODECS",
    "LOWRANK_TOLERANCE",
    "NUM_TEST",
    "SIZES",
    "TOLERANCE",
    "assert_planned",
    "datasets",
    "planned",
    "run_and_plan",
    "settings_of",
    "with_sections",
]

TOLERANCE = 0.02
LOWRANK_TOLERANCE = 0.05
"""Of changes under a codec that makes the fewer bytes the smaller they are."""
NUM_TEST = 72
"""Not a multiple of the microbatches, nor of what is evaluated between epochs."""
SIZES = (150, 90)
"""Training samples of the two agents: an epoch's last microbatch is shorter."""

CODECS = {
    "int8+zstd": {"activations": "int8+zstd", "outputs": "fp16", "output_gradients": "fp16"},
    "int4": {"activations": "int4:block=64+zstd", "outputs": "int8", "output_gradients": "int8"},
    "identity": {"activations": "identity", "outputs": "identity", "output_gradients": "identity"},
}


def settings_of(mode: str, codecs: str, **activations: object) -> RunSettings:
    settings = small_settings(
        run={"epochs": 4, "microbatch_samples": 16, "min_agents": len(SIZES)},
        model={"options": {"img_size": 4, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 1, "num_heads": 2}},
        window={"mode": "asynchronous", "samples": 32},
        evaluation={"every_epochs": 1, "samples": 40},
        activations={"mode": mode, **activations},
        codecs=CODECS[codecs],
    )
    return settings.model_copy(update={"telemetry_share": 0.01})


def datasets() -> list[ArrayDataset]:
    return [small_dataset(index, num_train, NUM_TEST) for index, num_train in enumerate(SIZES)]


def planned(
    settings: RunSettings,
    samples: Sequence[ArrayDataset],
    *,
    duration_s: float,
    store: str = "",
    protocol: Protocol = "3.1.1",
    max_packet_bytes: int = 1_000_000,
    may_be_kept: bool = True,
    num_windows: int = 8,
) -> RunPlan:
    """Return the plan of a run of these samples: nothing of the run itself goes in but how long it took.

    Where tokenizers are trained, `num_windows` are trained on trial.
    """
    model = plan_model(settings)
    sites = [
        site_of(model, Parties(f"site/{index}", "w0", f"site/{index}", index + 1, store), dataset)
        for index, dataset in enumerate(samples)
    ]
    cadence = None
    if settings.tokenizers.mode == "trainable":
        cadence = rehearse(settings, model.manifest, [(site.num_train, site.num_test) for site in sites])
        try_out(model, sites, cadence, num_windows)
    conditions = Conditions(
        Link(protocol, max_packet_bytes),
        settings.worker.credits,
        settings.worker.lease_s,
        may_be_kept=may_be_kept,
        duration_s=duration_s,
    )
    return plan_run(model.manifest, model.tokenizer_file, sites, conditions, cadence)


def assert_planned(plan: RunPlan, agents: Sequence[AgentRuntime], tolerance: float = TOLERANCE) -> None:
    for site, agent in zip(plan.sites, agents, strict=True):
        wire = agent._transport.wire
        assert site.whole.up == pytest.approx(wire.sent_bytes, rel=tolerance), site
        assert site.whole.down == pytest.approx(wire.received_bytes, rel=tolerance), site


def with_sections(settings: RunSettings, **sections: Mapping[str, object]) -> RunSettings:
    document = settings.model_dump(mode="json")
    for section, keys in sections.items():
        document[section] = {**document[section], **keys}
    return RunSettings.model_validate(document)


def run_and_plan(
    settings: RunSettings, faults: LinkFaults, num_windows: int = 8, samples: Sequence[ArrayDataset] = ()
) -> tuple[RunPlan, list[AgentRuntime]]:
    """Train a run of some samples (`datasets` when left out), and plan it."""
    samples = samples or datasets()
    network, is_kept = VirtualNetwork(faults), settings.activations.mode != "every-step"
    worker = Worker(network, settings, computes=True, kept_in=MemoryActivationStore() if is_kept else None)
    agents = [network.add_agent(f"site/{index}", each) for index, each in enumerate(samples)]
    run_until_over(network, worker, agents)
    assert worker.runtime.training_started_at is not None
    duration_s = network.clock() - worker.runtime.training_started_at
    store = "memory" if is_kept else ""
    return planned(settings, samples, duration_s=duration_s, store=store, num_windows=num_windows), agents
