"""Visits in a virtual network: sites that train nothing, and the checkpoints that they are served from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cutlayer.broker.faults import NO_FAULTS, LinkFaults
from cutlayer.broker.manifest import Manifest
from cutlayer.edge_agent.agent_options import AgentOptions
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.data_request import Rows
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.edge_agent.site_parts import SiteParts
from cutlayer.edge_agent.visit import Visit
from cutlayer.edge_agent.visit_prediction import PredictionVisit
from cutlayer.edge_agent.visited_data import VisitedDataset
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.virtual_run import Worker, run_until_over

__all__ = ["add_visit", "predicted_rows", "trained_store"]


def add_visit(
    network: VirtualNetwork,
    topic: str,
    visit: Visit,
    dataset: Dataset,
    rows: Rows = "all",
    faults: LinkFaults = NO_FAULTS,
    opens_in_s: float = 0.0,
    site: SiteParts | None = None,
) -> AgentRuntime:
    """Start a visit with these samples, which take some time to open."""
    visited = VisitedDataset(dataset, rows)
    if isinstance(visit, PredictionVisit):
        visit.names = visited.names

    def open_data(_: Manifest) -> Dataset:
        network.clock.now_s += opens_in_s
        return visited

    transport = network.transport(topic, up=faults, down=faults)
    agent = AgentRuntime(
        transport,
        topic,
        network.next_incarnation(),
        open_data,
        options=AgentOptions(visit=visit, site=site or SiteParts()),
        clock=network.clock,
    )
    network.add(topic, agent, transport, lambda: agent.is_finished)
    return agent


def trained_store(
    folder: Path, settings: RunSettings, datasets: Sequence[Dataset], sites: Sequence[SiteParts] = ()
) -> CheckpointStore:
    """Train a run to its end, and return where its checkpoints are."""
    network = VirtualNetwork()
    store = CheckpointStore(folder)
    worker = Worker(network, settings, computes=True, store=store)
    own = list(sites) or [SiteParts()] * len(datasets)
    agents = [
        network.add_agent(f"site/{index}", dataset, site=site)
        for index, (dataset, site) in enumerate(zip(datasets, own, strict=True))
    ]
    run_until_over(network, worker, agents)
    return store


def predicted_rows(path: Path) -> list[int]:
    """Return the numbers of the rows in a file of predictions."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return [int(np.int64(line.partition(",")[0])) for line in lines]
