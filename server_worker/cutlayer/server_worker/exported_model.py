"""The model that a user takes home: raw samples in, outputs out, in plain PyTorch.

An export copies this file and those that it stands on into one that needs torch, timm and safetensors, and nothing of
Cutlayer (`portable_source.py`).

Axes: B batch, N tokens, C outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.raw_features import raw_features
from cutlayer.server_worker.timm_import import create_model
from cutlayer.server_worker.torch_tokenizers import TorchTokenizer, torch_tokenizer

__all__ = ["ExportedModel", "load"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ExportedModel(nn.Module):
    """Tokenizers, encoder and head.

    Where each agent has a head of its own, the outputs are features (B, D) until one of these is given.

    Args:
        config: What `config.json` says.
        weights: `encoder.<name>` and `tokenizers.<modality>.<part>`.
        head: `weight` (C, D) and `bias` (C) of the head, where the agents have their own; None for none.

    Attributes:
        names: Modalities, in the order of the sequence.
        task: What the outputs mean.
    """

    def __init__(
        self, config: Mapping[str, Any], weights: Mapping[str, Tensor], head: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        specs = {name: _spec(document) for name, document in config["modalities"].items()}
        model, self.task = config["model"], dict(config["task"])
        vit = create_model(model["name"], pretrained=False, num_classes=0, **model["options"])
        is_pair = self.task["kind"] == "retrieval"
        self.is_headless = config.get("head") == "agent"
        self.encoder = SplitEncoder(
            cast("Any", vit),
            {name: tuple(spec.grid) for name, spec in specs.items()},
            num_classes=0 if self.is_headless else config["num_outputs"],
            fusion=model["fusion"],
            orders={name: spec.order for name, spec in specs.items()},
            missing=model["missing"],
            pair=cast("Any", SimpleNamespace(**self.task)) if is_pair else None,
            first_block=model.get("first_block", 0),
        )
        self.names = self.encoder.names
        of_tokenizers = _below("tokenizers.", weights)
        self.raw = nn.ModuleDict({f"{name}_raw": raw_features(specs[name]) for name in self.names})
        self.tokenizers = nn.ModuleDict(
            {f"{name}_tokens": torch_tokenizer(name, specs[name], of_tokenizers, torch.float32) for name in self.names}
        )
        self.encoder.load_state_dict(_below("encoder.", weights))
        self.head: nn.Linear | None = None
        if head is not None:
            if not self.is_headless:
                raise ValueError("this model has a head of its own: load it without head=")
            self.head = nn.Linear(self.encoder.width, config["num_outputs"])
            self.head.load_state_dict({name: head[name].float() for name in ("weight", "bias")})

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return outputs (B, C): logits, or standardized numbers, or the embeddings of a pair; or features (B, D).

        Args:
            inputs: Raw samples (B, ...) by modality, as the model card describes them; at least one modality.
        """
        tokens, positions = {}, {}
        for name in self.names:
            if name not in inputs:
                continue
            features = self.raw[f"{name}_raw"](inputs[name])
            tokenizer = cast("TorchTokenizer", self.tokenizers[f"{name}_tokens"])
            tokens[name] = tokenizer(features)
            present_BN = tokenizer.presence(features)
            if present_BN is not None:
                num_tokens = present_BN.shape[1]
                positions[name] = torch.where(present_BN, torch.arange(num_tokens), num_tokens)
        if not tokens:
            raise ValueError(f"inputs {sorted(inputs)} have none of {list(self.names)}")
        outputs_BC: Tensor = self.encoder(tokens, None, positions)
        return outputs_BC if self.head is None else cast("Tensor", self.head(outputs_BC))

    @torch.no_grad()
    def predict(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return what the outputs mean, (B, C).

        Probabilities of the classes; of multi-label tasks each by itself; numbers in the user's units for regression;
        embeddings as they are.

        Args:
            inputs: As of `forward`; arrays and lists as well.

        Raises:
            ValueError: When the heads are at the agents, and none of them was given.
        """
        if self.is_headless and self.head is None:
            raise ValueError("the heads of this model are at its sites: load(folder, head=FILE) with a site's own")
        outputs_BC: Tensor = self({name: torch.as_tensor(samples) for name, samples in inputs.items()})
        if self.task["kind"] == "classification":
            return outputs_BC.softmax(dim=1)
        if self.task["kind"] == "multi-label":
            return outputs_BC.sigmoid()
        if self.task["kind"] == "regression":
            scales = torch.tensor([[target["mean"], target["std"]] for target in self.task["targets"]])
            return outputs_BC * scales[:, 1] + scales[:, 0]
        return outputs_BC


def load(folder: str | Path, head: str | Path | None = None) -> ExportedModel:
    """Return the model of a folder, ready to predict.

    Args:
        folder: The folder.
        head: A site's own head (`edge-agent start --head FILE`), where the run had its heads at the agents.
    """
    folder = Path(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    own = None if head is None else safetensors.torch.load_file(head)
    return ExportedModel(config, safetensors.torch.load_file(folder / WEIGHTS), own).eval()


def _spec(document: Mapping[str, Any]) -> SimpleNamespace:
    values = dict(document)
    values["categories"] = [SimpleNamespace(**category) for category in values.get("categories", ())]
    return SimpleNamespace(**values)


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
