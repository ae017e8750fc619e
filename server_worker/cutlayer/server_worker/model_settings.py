"""[model]: the encoder that a run trains. What of it is trained says [tuning], which the manifest has, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cutlayer.broker.site_optimizer import HeadStart
from cutlayer.server_worker.settings_section import Section, Share

__all__ = ["ModelSettings"]

# What `timm.create_model` is given by other means.
_TAKEN_OPTIONS = {
    "num_classes": "name the classes in [task] instead",
    "pretrained": "set [model] pretrained instead",
    "checkpoint_path": "set [model] weights instead",
    "pretrained_cfg_overlay": "set [model] weights instead",
}


class ModelSettings(Section):
    """[model]: the encoder.

    Attributes:
        name: Name of a timm VisionTransformer.
        options: Further arguments of `timm.create_model`, such as `embed_dim`, `depth`, `drop_path_rate`.
        weights: File of pretrained weights, as timm reads them (safetensors, or a PyTorch state dict); relative
            to the settings file.
        pretrained: Whether timm downloads the model's published weights.
        fusion: `early` (one sequence of all modalities) or `late` (one pass a modality).
        missing: What stands for a modality that a sample lacks: `hide`, nothing; `token`, a learned token (early
            fusion only).
        modality_dropout: Probability that a modality of a training sample is hidden.
        dtype: Type of the server side's parameters and arithmetic.
        first_block: Blocks of the encoder that are at the agents, as parts of their own tokenizers.
        head: Where the linear head is: at the `server`, or one at each `agent`, which never leaves it.
        head_start: How the agents' heads begin: `alike`, drawn from the run's seed, or each in `secret`.
    """

    name: Annotated[str, Field(min_length=1, max_length=128)] = "vit_tiny_patch16_224"
    options: dict[str, object] = Field(default_factory=dict)
    weights: Path | None = None
    pretrained: bool = False
    fusion: Literal["early", "late"] = "early"
    missing: Literal["hide", "token"] = "hide"
    modality_dropout: Share = 0.0
    dtype: Literal["float32", "float64"] = "float32"
    first_block: Annotated[int, Field(ge=0, le=1_000)] = 0
    head: Literal["server", "agent"] = "server"
    head_start: HeadStart = "alike"

    @model_validator(mode="after")
    def _consistent(self) -> ModelSettings:
        for option, instead in _TAKEN_OPTIONS.items():
            if option in self.options:
                raise ValueError(f"options.{option} is not passed on to timm: {instead}")
        if self.missing == "token" and self.fusion == "late":
            raise ValueError(
                'missing = "token" has no effect with fusion = "late", where no modality sees another: keep one of them'
            )
        if self.first_block and self.missing == "token":
            raise ValueError('first_block leaves no place before the blocks for missing = "token": set it to "hide"')
        if self.head == "server" and self.head_start != "alike":
            raise ValueError('head_start is of heads at the agents: set head to "agent", or leave it out')
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained and weights are both set: keep one of them")
        return self
