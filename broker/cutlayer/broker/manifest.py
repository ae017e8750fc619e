"""The run manifest: what every party of a run has to agree on, in one immutable document.

The first worker writes it from its run settings, publishes it retained on `cutlayer/run`, and everybody checks
it by its digest. An agent learns from it all that it needs beside its broker, topic and data.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Final, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.modalities import AudioSpec, ImageSpec, ModalitySpec, SeriesSpec, TableSpec, TextSpec, TokensSpec
from cutlayer.broker.site_optimizer import HeadStart, SiteOptimizer
from cutlayer.broker.spec_base import Dimension, Name, Spec
from cutlayer.broker.tasks import (
    ClassificationSpec,
    MultiLabelSpec,
    RegressionSpec,
    RetrievalSpec,
    TargetSpec,
    TaskSpec,
    without_kind,
)
from cutlayer.broker.tuning_spec import TuningSpec

__all__ = [
    "MANIFEST_FORMAT",
    "MAX_MANIFEST_BYTES",
    "ActivationMode",
    "AudioSpec",
    "BudgetSpec",
    "ClassificationSpec",
    "CodecNames",
    "EvaluationSpec",
    "ImageSpec",
    "Manifest",
    "ModalitySpec",
    "MultiLabelSpec",
    "Name",
    "RegressionSpec",
    "SeriesSpec",
    "SiteOptimizer",
    "TableSpec",
    "TargetSpec",
    "TaskSpec",
    "TextSpec",
    "TokenReduction",
    "TokenizerMode",
    "TokenizerWeights",
    "TokensSpec",
    "WindowSpec",
]

MANIFEST_FORMAT: Final = 1
MAX_MANIFEST_BYTES = 64 * 1024

CodecName = Annotated[str, Field(min_length=1, max_length=64)]  # as long as a message may carry
ActivationMode = Literal["every-step", "once", "delta"]
TokenizerMode = Literal["frozen", "trainable"]


class CodecNames(Spec):
    """Codec of each kind of tensor, by the names of `cutlayer.compression.codec_from_name`."""

    activations: CodecName = "int8+zstd"
    outputs: CodecName = "fp16"
    output_gradients: CodecName = "fp16"
    activation_gradients: CodecName = "int8+zstd"


class TokenReduction(Spec):
    """How many tokens of a modality go up: the others are dropped or merged before the cut.

    Attributes:
        kind: `random` drops the same ones of a sample each time, whatever they hold; `content` drops those nearest to
            the sample's mean token; `merge` averages the most similar pairs (ToMe, arXiv 2210.09461).
        keep: Share of the tokens that is left.
    """

    kind: Literal["random", "content", "merge"] = "content"
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5

    def num_kept(self, num_tokens: int) -> int:
        """Return how many of `num_tokens` are left: at least one."""
        return max(round(self.keep * num_tokens), 1)


class BudgetSpec(Spec):
    """How far agents may go down in precision to meet a limit of bytes.

    Attributes:
        bytes_per_sample: Bytes that an agent may send up for each sample of each training step, on average over its
            planned run; None for no limit. All its bytes count (activations, references, gradients, evaluations,
            reports, MQTT's own), divided by its training samples times the epochs. So activations that go up once
            count once over all epochs, and the first epoch may lie far above.
        ladder: Codecs of activations coarser than `codecs.activations`, the finest first. An agent short of uplink
            steps down this list, and up again.
        max_relative_error: The accuracy guard: a codec of the ladder is used only where the root mean square of its
            error is at most this share of the activations' own, measured on what the agent sends.
    """

    bytes_per_sample: PositiveFloat | None = None
    ladder: Annotated[tuple[CodecName, ...], Field(max_length=16)] = ()
    max_relative_error: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2


class WindowSpec(Spec):
    """When an optimizer step happens.

    Attributes:
        mode: `asynchronous` closes on `samples` or `deadline_s`; `synchronous` on one microbatch from each
            leased agent that still trains.
        samples: Samples that close an asynchronous window.
        deadline_s: Seconds from a window's first gradient to its close at the latest; also how long a backward
            pass waits for the last gradients of the microbatches that went forward together.
        max_staleness: Versions that may be committed between a microbatch's forward pass and its backward pass.
    """

    mode: Literal["asynchronous", "synchronous"] = "asynchronous"
    samples: PositiveInt = 128
    deadline_s: PositiveFloat = 1.0
    max_staleness: Annotated[int, Field(ge=0, le=10_000)] = 4


class TokenizerWeights(Spec):
    """The client-side weights: where they are and how they are used.

    Attributes:
        mode: `frozen`: agents only read them, and no gradient goes down. `trainable`: gradients at the cut go down,
            those of the tokenizers up, and new weights down.
        every_steps: An agent sends its tokenizers' gradients summed over so many of its own steps.
        every_windows: New weights go down after so many windows.
        digest: SHA-256 of the safetensors file, in hexadecimal.
        num_bytes: Its size.
        num_chunks: Retained packets on `cutlayer/model/<digest>/<i>`.
    """

    mode: TokenizerMode = "frozen"
    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    every_windows: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    num_bytes: Annotated[int, Field(ge=1, le=1 << 30)]
    num_chunks: Annotated[int, Field(ge=1, le=65_536)]


class EvaluationSpec(Spec):
    """How agents evaluate on their own samples (labels stay with them), and which weights a run ends with.

    With `keep = "best"` or a `patience_epochs` above 0 the weights of each so many epochs are *candidates*: agents
    evaluate them on validation samples, and test samples are seen once, at the end. Else nothing is chosen, and
    agents evaluate on test samples.

    Attributes:
        every_epochs: Evaluate after each so many epochs; 0 for only at the end.
        samples: Samples an agent uses then; the evaluation at the end uses all test samples.
        keep: Whether the run ends with its `last` weights, or with those of the `best` candidate.
        patience_epochs: The run ends when so many epochs have passed without a better candidate; 0 for never.
        metric: What judges candidates: `loss`, or a metric of the task by its name; empty for the task's first.
        val_ratio: Share of its training samples that a site sets aside for that, where its data name none.
    """

    every_epochs: Annotated[int, Field(ge=0)] = 1
    samples: PositiveInt = 256
    keep: Literal["last", "best"] = "last"
    patience_epochs: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    metric: Annotated[str, Field(max_length=64)] = ""
    val_ratio: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1

    @property
    def selects(self) -> bool:
        """Whether candidates are judged on validation samples."""
        return self.keep == "best" or self.patience_epochs > 0


class Manifest(Spec):
    """What every party of a run agrees on. Immutable; a different manifest is a different run.

    Attributes:
        format: Version of this document's form.
        run_id: Unique name of the run.
        seed: Seed that data order and splits derive from.
        epochs: Passes of each agent over its own training samples.
        microbatch_samples: Samples an agent sends at once.
        width: Width D of a token.
        model: Name of the encoder, for people and for the model card.
        num_parameters: Parameters of the server side, LoRA's additions apart, for cost comparisons.
        num_trained_parameters: Parameters of the server side that are trained, LoRA's included; None for all.
        tuning: Which of them.
        modalities: Specification of each modality, by name; the encoder takes them in alphabetical order.
        fusion: `early` (one sequence) or `late` (one pass a modality).
        task: What is learned.
        codecs: Codec of each kind of tensor.
        window: When an optimizer step happens.
        tokenizers: The client-side weights.
        evaluation: How agents evaluate.
        telemetry_s: Seconds between two telemetry messages of an agent.
        telemetry_share: Share of an agent's bytes that its telemetry may take: beyond it reports come less often,
            though never so seldom that the agent would count as vanished. 1 for no limit.
        activations: `every-step` sends them each time; `once` lets workers keep them, so that later epochs send
            references; `delta` sends their change since the sample's last visit. A site may always send every step.
        reduction: Token reduction, by modality; those not named send all tokens.
        budget: How far agents may go down in precision.
        head: How the heads of the agents' own begin: what comes down is then features. None where the server has the
            only one.
        site_optimizer: How agents train what is their own; None where they train nothing.
    """

    format: Literal[1] = MANIFEST_FORMAT
    run_id: Name
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    epochs: PositiveInt
    microbatch_samples: Annotated[int, Field(ge=1, le=65_536)]
    width: Dimension
    model: Annotated[str, Field(max_length=256)]
    num_parameters: Annotated[int, Field(ge=0)]
    num_trained_parameters: Annotated[int, Field(ge=0)] | None = None
    tuning: TuningSpec = TuningSpec()
    modalities: Annotated[dict[Name, ModalitySpec], Field(min_length=1, max_length=16)]
    fusion: Literal["early", "late"]
    task: TaskSpec
    codecs: CodecNames
    window: WindowSpec
    tokenizers: TokenizerWeights
    evaluation: EvaluationSpec = EvaluationSpec()
    telemetry_s: PositiveFloat = 1.0
    telemetry_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    activations: ActivationMode = "every-step"
    reduction: Annotated[dict[Name, TokenReduction], Field(max_length=16)] = Field(default_factory=dict)
    budget: BudgetSpec = BudgetSpec()
    head: HeadStart | None = None
    site_optimizer: SiteOptimizer | None = None

    @model_validator(mode="after")
    def _reduces_its_modalities(self) -> Manifest:
        for name, reduction in self.reduction.items():
            if name not in self.modalities:
                raise ValueError(f"reduction of {name!r}, which is none of {', '.join(sorted(self.modalities))}")
            if reduction.kind == "merge" and self.modalities[name].is_ragged:
                raise ValueError(f"tokens of {name!r} cannot be merged: samples may lack some")
        return self

    @model_validator(mode="after")
    def _trains_what_may_change(self) -> Manifest:
        if self.tokenizers.mode == "trainable":
            if self.activations == "once":
                raise ValueError("activations that go up once cannot change with trainable tokenizers")
            if any(reduction.kind == "merge" for reduction in self.reduction.values()):
                raise ValueError("merged tokens have no gradient of single tokens, which trainable tokenizers need")
        return self

    @model_validator(mode="after")
    def _has_a_head_where_it_can_be(self) -> Manifest:
        if self.head is not None and isinstance(self.task, RetrievalSpec):
            raise ValueError("what is matched goes through one head, at the worker")
        trains_own = self.tokenizers.mode == "trainable" and any(
            isinstance(spec, TokensSpec) for spec in self.modalities.values()
        )
        if (self.head is not None or trains_own) and self.site_optimizer is None:
            raise ValueError("agents have something of their own to train, and no optimizer for it")
        return self

    @property
    def num_outputs(self) -> int:
        """Width of what comes down: outputs, or the features that an agent's own head makes outputs of."""
        return self.task.num_outputs if self.head is None else self.width

    @property
    def num_train_outputs(self) -> int:
        """The same of a training step."""
        return self.task.num_train_outputs if self.head is None else self.width

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter of the tokenizers, as the file of their weights names them."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, spec in sorted(self.modalities.items()):
            shapes |= {f"{name}.{part}": shape for part, shape in spec.parameter_shapes(self.width).items()}
        return shapes

    def num_tokens(self, modality: str) -> int:
        """Return how many tokens of a modality go up for each sample: K."""
        num_tokens = self.modalities[modality].num_tokens
        reduction = self.reduction.get(modality)
        return num_tokens if reduction is None else reduction.num_kept(num_tokens)

    def to_bytes(self) -> bytes:
        """Serialize as canonical JSON: sorted keys, no white space, UTF-8."""
        document = self.model_dump(mode="json")
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def digest(self) -> str:
        """Return the SHA-256 of `to_bytes`, in hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, document: bytes) -> Manifest:
        """Parse and check a manifest.

        Raises:
            MalformedMessage: When it is too large, no JSON, or breaks the schema; the text names the key.
        """
        if len(document) > MAX_MANIFEST_BYTES:
            raise MalformedMessage(f"run manifest of {len(document)} B is over {MAX_MANIFEST_BYTES} B")
        try:
            return cls.model_validate_json(document)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(str(part) for part in without_kind(first["loc"]))
            raise MalformedMessage(f"run manifest: {key or 'document'}: {first['msg']}") from error
