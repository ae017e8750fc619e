"""The loss, computed at the agent from outputs that came down and targets that never leave. One class a task."""

from __future__ import annotations

from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RegressionSpec, RetrievalSpec, TaskSpec
from cutlayer.edge_agent.binary_cross_entropy import BinaryCrossEntropy
from cutlayer.edge_agent.cross_entropy import CrossEntropy
from cutlayer.edge_agent.loss_result import LossResult, PartSums, Task
from cutlayer.edge_agent.retrieval import Retrieval
from cutlayer.edge_agent.squared_error import SquaredError

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "LossResult",
    "PartSums",
    "Retrieval",
    "SquaredError",
    "Task",
    "task_from_spec",
]


def task_from_spec(spec: TaskSpec) -> Task:
    """Return the task that a run manifest asks for."""
    match spec:
        case ClassificationSpec():
            return CrossEntropy()
        case MultiLabelSpec():
            return BinaryCrossEntropy(spec)
        case RegressionSpec():
            return SquaredError(spec)
        case RetrievalSpec():
            return Retrieval(spec)
