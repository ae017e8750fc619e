"""The run settings: what whoever starts a run writes down, as TOML, checked before anything is built.

The smallest file that starts a run names its modalities and classes:

    [modalities.image]
    kind = "image"
    height = 8
    width = 8
    channels = 1
    patch = 2

    [task]
    classes = ["cat", "dog"]
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import Field, PositiveFloat, model_validator

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import (
    BudgetSpec,
    CodecNames,
    EvaluationSpec,
    ModalitySpec,
    TaskSpec,
    WindowSpec,
)
from cutlayer.broker.selection import judging_metric
from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.broker.tuning_spec import TuningSpec
from cutlayer.server_worker.model_settings import ModelSettings
from cutlayer.server_worker.run_sections import (
    ActivationSettings,
    DataSettings,
    ModalityName,
    OptimizerSettings,
    RunSection,
    TokenizerSettings,
    WorkerSettings,
)
from cutlayer.server_worker.settings_errors import settings_error
from cutlayer.server_worker.settings_section import Section
from cutlayer.server_worker.vocabulary_files import name_vocabularies

__all__ = [
    "ActivationSettings",
    "DataSettings",
    "ModelSettings",
    "OptimizerSettings",
    "RunSection",
    "RunSettings",
    "TokenizerSettings",
    "TuningSpec",
    "WorkerSettings",
    "load_run_settings",
]


class RunSettings(Section):
    """Everything that a run is started with. Immutable; built once, at the edge of the program.

    Attributes:
        run: The run as a whole.
        data: What the run is about.
        model: The encoder.
        tuning: Which of its parameters are trained.
        modalities: Specification of each modality, by name.
        task: What is learned.
        codecs: Codec of each kind of tensor.
        window: When an optimizer step happens.
        optimizer: The step.
        worker: How a server worker works.
        evaluation: How agents evaluate.
        telemetry_s: Seconds between two telemetry messages of an agent.
        telemetry_share: Share of an agent's bytes that its telemetry may take: beyond it reports come less often.
        activations: How often they are sent.
        tokenizers: The client side of the model.
        budget: How far agents may go down in precision to meet a limit of bytes.
        vocabularies: File of the vocabulary of each text modality that has one.
    """

    run: RunSection = RunSection()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    tuning: TuningSpec = TuningSpec()
    modalities: Annotated[dict[ModalityName, ModalitySpec], Field(min_length=1, max_length=16)]
    task: TaskSpec
    codecs: CodecNames = CodecNames()
    window: WindowSpec = WindowSpec()
    optimizer: OptimizerSettings = OptimizerSettings()
    worker: WorkerSettings = WorkerSettings()
    evaluation: EvaluationSpec = EvaluationSpec()
    telemetry_s: PositiveFloat = 1.0
    telemetry_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    activations: ActivationSettings = ActivationSettings()
    tokenizers: TokenizerSettings = TokenizerSettings()
    budget: BudgetSpec = BudgetSpec()
    # Not for the file: what it names as a modality's vocabulary comes here, and its digest into the specification.
    vocabularies: dict[ModalityName, Path] = Field(default_factory=dict, exclude=True)

    @model_validator(mode="after")
    def _reduces_its_modalities(self) -> RunSettings:
        for name, reduction in self.activations.reduction.items():
            if name not in self.modalities:
                raise ValueError(
                    f"activations.reduction.{name} is of no modality: name one of {', '.join(sorted(self.modalities))}"
                )
            if reduction.kind == "merge" and self.modalities[name].is_ragged:
                raise ValueError(
                    f'activations.reduction.{name}.kind = "merge" takes samples that have all their tokens, and those '
                    f'of kind = "{self.modalities[name].kind}" may have fewer: set kind to "content" or "random"'
                )
        return self

    @model_validator(mode="after")
    def _trains_what_may_change(self) -> RunSettings:
        if self.tokenizers.mode == "frozen":
            return self
        if self.activations.mode == "once":
            raise ValueError(
                'tokenizers.mode = "trainable" changes activations, and activations.mode = "once" sends each a single '
                'time: set activations.mode to "every-step" or "delta"'
            )
        for name, reduction in self.activations.reduction.items():
            if reduction.kind == "merge":
                raise ValueError(
                    f'activations.reduction.{name}.kind = "merge" mixes tokens, which tokenizers.mode = "trainable" '
                    'has no gradient for: set kind to "content" or "random"'
                )
        return self

    @model_validator(mode="after")
    def _begins_where_tokens_are(self) -> RunSettings:
        if not self.model.first_block:
            return self
        for name, spec in self.modalities.items():
            if spec.kind != "tokens":
                raise ValueError(
                    f"model.first_block = {self.model.first_block} takes tokens that have been through blocks, and "
                    f'those of {name} have not: set its kind to "tokens"'
                )
        if self.activations.reduction:
            raise ValueError(
                "activations.reduction could drop prefix tokens, which model.first_block needs: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _matches_what_does_not_see_each_other(self) -> RunSettings:
        if not isinstance(self.task, RetrievalSpec):
            return self
        between = " and ".join(self.task.between)
        if self.model.head == "agent":
            raise ValueError(
                f'task.kind = "retrieval" matches {between} by one head, at the worker, and model.head = "agent" gives '
                'it none: set model.head to "server"'
            )
        if set(self.task.between) != self.modalities.keys():
            raise ValueError(
                f"task.between matches {between}, and the run's modalities are {', '.join(sorted(self.modalities))}: "
                "give it these two"
            )
        if self.model.fusion == "early":
            raise ValueError(
                f'task.kind = "retrieval" matches {between}, which model.fusion = "early" puts into one sequence: '
                'set model.fusion to "late"'
            )
        if self.model.modality_dropout:
            raise ValueError(
                "model.modality_dropout hides one of the two that task.kind = retrieval matches: set it to 0"
            )
        if self.tokenizers.mode == "trainable" and self.task.negatives == "window":
            raise ValueError(
                'tokenizers.mode = "trainable" needs gradients before a window closes, when task.negatives = "window" '
                'gives them: set task.negatives to "agent", or tokenizers.mode to "frozen"'
            )
        return self

    @model_validator(mode="after")
    def _chooses_by_what_there_is(self) -> RunSettings:
        evaluation = self.evaluation
        try:
            judging_metric(self.task, evaluation.metric)
        except ValueError as error:
            raise ValueError(f"evaluation.metric: {error}") from error
        if not evaluation.selects:
            return self
        of = 'evaluation.keep = "best"' if evaluation.keep == "best" else "evaluation.patience_epochs"
        if not evaluation.every_epochs:
            raise ValueError(f"{of} judges epochs, and evaluation.every_epochs = 0 evaluates none: set it to 1 or more")
        if self.run.service:
            raise ValueError(f"{of} chooses at the end, and run.service = true has none: set one of the two")
        if self.model.head == "agent":
            raise ValueError(
                f'{of} chooses weights of the worker, and the heads that model.head = "agent" leaves at the agents '
                'would not be of the same epoch: set model.head to "server", or leave the other out'
            )
        if self.tokenizers.mode == "trainable" and any(spec.kind == "tokens" for spec in self.modalities.values()):
            raise ValueError(
                f'{of} chooses weights of the worker, and tokenizers of kind = "tokens" that are trained at the agents '
                'would not be of the same epoch: set tokenizers.mode to "frozen", or leave the other out'
            )
        return self

    @model_validator(mode="after")
    def _microbatch_fits(self) -> RunSettings:
        if self.run.microbatch_samples > self.worker.max_batch_samples:
            raise ValueError(
                f"run.microbatch_samples = {self.run.microbatch_samples} is over worker.max_batch_samples = "
                f"{self.worker.max_batch_samples}: lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _waiting_agent_is_heard(self) -> RunSettings:
        # An agent that waits for its window says nothing but its telemetry; silence is what a lease ends by.
        if self.telemetry_s > self.worker.lease_s:
            raise ValueError(
                f"telemetry_s = {self.telemetry_s:g} is over worker.lease_s = {self.worker.lease_s:g}, so an agent "
                "that waits would count as vanished: lower the first or raise the second"
            )
        return self


def load_run_settings(path: Path, overrides: Mapping[str, object] | None = None) -> RunSettings:
    """Read run settings from TOML.

    Args:
        path: The file.
        overrides: Values that win over the file's, by dotted key (`{"run.epochs": 3}`); None leaves the file's.

    Raises:
        SettingsError: When the file cannot be read, is no TOML, or a setting is unknown, missing or out of its
            limits. The text names the file, the key, the value and the fix.
    """
    document = _read_toml(path)
    for key, value in (overrides or {}).items():
        if value is not None:
            _override(document, key, value)
    if "vocabularies" in document:
        raise SettingsError(f"{path}: unknown key vocabularies", "name the file as vocabulary of its modality")
    vocabularies = name_vocabularies(document, path.parent)
    try:
        settings = RunSettings.model_validate(document)
    except pydantic.ValidationError as error:
        raise settings_error(str(path), error, RunSettings) from error
    # What a file names is found from that file, wherever the program is started.
    weights, store = settings.model.weights, settings.activations.store
    changes: dict[str, object] = {"vocabularies": vocabularies}
    if weights is not None:
        changes["model"] = settings.model.model_copy(update={"weights": path.parent / weights})
    if store is not None:
        changes["activations"] = settings.activations.model_copy(update={"store": path.parent / store})
    return settings.model_copy(update=changes)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"no settings file {path}", "name an existing TOML file") from error
    except OSError as error:
        raise SettingsError(
            f"settings file {path} cannot be read: {error.strerror}", "check its kind and rights"
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"settings file {path} is not UTF-8 at byte {error.start}", "save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"settings file {path} is no TOML: {error}", "mend that line") from error


def _override(document: dict[str, object], key: str, value: object) -> None:
    *sections, last = key.split(".")
    table: object = document
    for section in sections:
        # A key below something that is no table is refused by the model, which knows what belongs there.
        table = table.setdefault(section, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise SettingsError(
            f"override {key} = {value!r} lies below a key that is no section", "name a key of a section"
        )
    table[last] = value
