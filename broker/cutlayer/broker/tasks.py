"""What a run learns: a specification for each kind of task, as run settings and the run manifest have it.

The agent computes the loss (`cutlayer.edge_agent.losses`), and only sums of it leave the site; `task_metrics.py` makes
metrics of these. A task says how wide the outputs are and what they are called, so that few have to ask its kind.
"""

from __future__ import annotations

import abc
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Discriminator, Field, PositiveFloat, Tag, model_validator

from cutlayer.broker.spec_base import Spec

__all__ = [
    "TASK_KINDS",
    "ClassificationSpec",
    "MultiLabelSpec",
    "RegressionSpec",
    "RetrievalSpec",
    "TargetSpec",
    "TaskSpec",
    "without_kind",
]

PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*$"
OutputName = Annotated[str, Field(min_length=1, max_length=128, pattern=PRINTABLE)]
MAX_TARGETS = 32
"""Of a regression: each has its own sums in every report."""


class _SpecOfTask(Spec, abc.ABC):
    """What every task's specification says of its outputs."""

    @property
    @abc.abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """What each output stands for."""

    @property
    def num_outputs(self) -> int:
        """Width C of the outputs."""
        return len(self.output_names)

    @property
    def num_train_outputs(self) -> int:
        """Width of a training step's outputs."""
        return self.num_outputs


class ClassificationSpec(_SpecOfTask):
    """One label of `classes` a sample: softmax cross-entropy.

    Attributes:
        classes: Class names, in the order of the outputs.
    """

    called: ClassVar[str] = "classes"
    kind: Literal["classification"] = "classification"
    classes: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(min_length=2, max_length=100_000)]

    @property
    def output_names(self) -> tuple[str, ...]:
        """What each output stands for."""
        return self.classes


class MultiLabelSpec(_SpecOfTask):
    """Any number of `classes` a sample, none of them included: a binary cross-entropy each.

    Attributes:
        classes: Class names, in the order of the outputs.
        positive_weights: Weight of a class where it is there, against 1 where it is not, in the order of `classes`:
            above 1 for classes that are rare. None for 1 everywhere.
    """

    called: ClassVar[str] = "classes"
    kind: Literal["multi-label"] = "multi-label"
    classes: Annotated[tuple[OutputName, ...], Field(min_length=1, max_length=100_000)]
    positive_weights: tuple[PositiveFloat, ...] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> MultiLabelSpec:
        _check_names("classes", self.classes)
        weights = self.positive_weights
        if weights is not None and len(weights) != len(self.classes):
            raise ValueError(f"positive_weights has {len(weights)} for {len(self.classes)} classes: give one a class")
        return self

    @property
    def output_names(self) -> tuple[str, ...]:
        """What each output stands for."""
        return self.classes


class TargetSpec(Spec):
    """A number that is to be predicted.

    Its mean and standard deviation standardize it, so that the loss has no unit and targets weigh alike. They are
    part of the run and everybody sees them: choose them from what is known of the quantity, or from the sites' own
    means, not from one patient.

    Attributes:
        name: What it is.
        mean: Subtracted from it.
        std: Divides it afterwards.
        unit: For people; empty for none.
    """

    name: OutputName
    mean: float
    std: PositiveFloat
    unit: Annotated[str, Field(max_length=32, pattern=PRINTABLE)] = ""


class RegressionSpec(_SpecOfTask):
    """One number or several a sample: squared error of the standardized targets, or Huber's loss.

    Attributes:
        targets: The numbers, in the order of the outputs. The outputs are standardized, too.
        huber_delta: From this error on, in standard deviations, the loss grows linearly (Huber, 1964): outliers pull
            less. None for the squared error.
    """

    called: ClassVar[str] = "targets"
    kind: Literal["regression"] = "regression"
    targets: Annotated[tuple[TargetSpec, ...], Field(min_length=1, max_length=MAX_TARGETS)]
    huber_delta: PositiveFloat | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> RegressionSpec:
        _check_names("targets", self.output_names)
        return self

    @property
    def output_names(self) -> tuple[str, ...]:
        """What each output stands for."""
        return tuple(target.name for target in self.targets)


class RetrievalSpec(_SpecOfTask):
    """Which sample of one modality belongs to which of another: pairs are implied by position, so nobody names them.

    InfoNCE (arXiv 1807.03748) with a learned temperature, in both directions.

    Attributes:
        between: The two modalities.
        dimensions: Of an embedding, E.
        negatives: What a sample's partner is told apart from. `window`: all samples of the window, at the worker; a
            training step's outputs are then its losses, (B, 1), and the gradients that come back say no more than
            that it is part of the window. `agent`: the samples of its microbatch, at the agent, as in the paper
            (arXiv 2502.06355).
    """

    called: ClassVar[str] = "classes"
    kind: Literal["retrieval"] = "retrieval"
    between: tuple[OutputName, OutputName]
    dimensions: Annotated[int, Field(ge=2, le=4_096)] = 128
    negatives: Literal["window", "agent"] = "window"

    @model_validator(mode="after")
    def _two(self) -> RetrievalSpec:
        if self.between[0] == self.between[1]:
            raise ValueError(f"between has {self.between[0]!r} twice: name two modalities")
        return self

    @property
    def output_names(self) -> tuple[str, ...]:
        """None: outputs are embeddings."""
        return ()

    @property
    def num_outputs(self) -> int:
        """Width of the outputs: both embeddings, one after the other."""
        return 2 * self.dimensions

    @property
    def num_train_outputs(self) -> int:
        """Width of a training step's outputs."""
        return 1 if self.negatives == "window" else self.num_outputs


def _kind_of(value: Any) -> str:
    """Return a task's kind; classification needs none, as long as it was the only one it had none."""
    kind = value.get("kind", "classification") if isinstance(value, dict) else getattr(value, "kind", "")
    return kind if isinstance(kind, str) else ""


TaskSpec = Annotated[
    Annotated[ClassificationSpec, Tag("classification")]
    | Annotated[MultiLabelSpec, Tag("multi-label")]
    | Annotated[RegressionSpec, Tag("regression")]
    | Annotated[RetrievalSpec, Tag("retrieval")],
    Discriminator(_kind_of),
]
TASK_KINDS: Final = ("classification", "multi-label", "regression", "retrieval")


def without_kind(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the place of a value in a document: pydantic puts the kind that it chose for a task into it."""
    is_inside = location[:1] == ("task",) and len(location) > 1 and location[1] in TASK_KINDS
    return (location[0], *location[2:]) if is_inside else location


def _check_names(what: str, names: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} has {name!r} twice: give each a name of its own")
        seen.add(name)
