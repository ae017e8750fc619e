"""What a run asks of its agents' data: known only once the run manifest has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cutlayer.broker.manifest import ModalitySpec, TaskSpec
from cutlayer.edge_agent.partition import Shard

__all__ = ["DataRequest"]


@dataclass(frozen=True, slots=True)
class DataRequest:
    """What a data set is opened with.

    Attributes:
        modalities: Specification of each modality of the run, by name.
        task: What is learned, with the names of its classes or targets.
        shard: Which part of the data is this agent's.
        seed: The run's seed; partitions derive from it.
        options: `--data-option`, by key.
        validates: Whether the run asks for validation samples.
    """

    modalities: Mapping[str, ModalitySpec]
    task: TaskSpec
    shard: Shard = field(default_factory=Shard)
    seed: int = 0
    options: Mapping[str, object] = field(default_factory=dict)
    validates: bool = False
