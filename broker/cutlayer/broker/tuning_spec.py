"""Which of the encoder's parameters a run trains: a section of the run settings, and of the manifest.

The workers of a pool have to agree on it, and a run that is resumed has to have the one that it began with.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cutlayer.broker.spec_base import Spec

__all__ = ["LoraTarget", "TuningMode", "TuningSpec"]

TuningMode = Literal["full", "last", "lora", "frozen"]
LoraTarget = Literal["qkv", "proj", "fc1", "fc2"]


class TuningSpec(Spec):
    """[tuning]: what is trained at the server. The head is, in every mode.

    Attributes:
        mode: `full`: everything. `last`: the last blocks, and what is behind them. `lora`: low-rank additions to the
            blocks' linear maps (arXiv 2106.09685). `frozen`: no block.
        blocks: With `last`: how many.
        rank: With `lora`: rank of each addition, r in the paper.
        alpha: With `lora`: an addition counts alpha / rank times.
        targets: With `lora`: the linear maps of a block that have one: those of the attention (`qkv`, `proj`) and of
            the multilayer perceptron (`fc1`, `fc2`).
        embeddings: Which modalities' own parameters (modality embedding, positions, prefix tokens) train in the modes
            other than `full`: of `new` ones, which the weights that the run begins with did not know; of `all`; of
            `none`.
    """

    mode: TuningMode = "full"
    blocks: PositiveInt = 1
    rank: Annotated[int, Field(ge=1, le=1_024)] = 8
    alpha: PositiveFloat = 16.0
    targets: Annotated[tuple[LoraTarget, ...], Field(min_length=1, max_length=4)] = ("qkv", "proj")
    embeddings: Literal["new", "all", "none"] = "new"

    @model_validator(mode="after")
    def _says_its_mode(self) -> TuningSpec:
        # A rank without a mode would train everything, which is not what was meant.
        if "mode" not in self.model_fields_set and self.model_fields_set:
            raise ValueError(f'{", ".join(sorted(self.model_fields_set))} without a mode: set mode, such as "lora"')
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("targets has one twice: name each once")
        return self
