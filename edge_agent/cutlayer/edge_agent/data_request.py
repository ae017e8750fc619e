"""What a run asks of its agents' data: known only once the run manifest has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cutlayer.broker.manifest import ModalitySpec, TaskSpec
from cutlayer.edge_agent.partition import Shard

__all__ = ["ROWS", "DataRequest", "Rows"]

Rows = Literal["train", "val", "test", "all"]
ROWS: tuple[Rows, ...] = ("train", "val", "test", "all")


@dataclass(frozen=True, slots=True)
class DataRequest:
    """What a data set is opened with.

    Attributes:
        modalities: Specification of each modality of the run, by name.
        task: What is learned, with the names of its classes or targets.
        shard: Which part of the data is this agent's.
        seed: The run's seed; partitions derive from it.
        options: `--data-option`, by key.
        rows: Which rows a visit asks for: all of these count as for testing, in their order, and none as for training.
            None for training.
        wants_targets: Whether targets are of use; if not, there may be none, and any value will do.
        validates: Whether the run asks for validation samples.
    """

    modalities: Mapping[str, ModalitySpec]
    task: TaskSpec
    shard: Shard = field(default_factory=Shard)
    seed: int = 0
    options: Mapping[str, object] = field(default_factory=dict)
    rows: Rows | None = None
    wants_targets: bool = True
    validates: bool = False
