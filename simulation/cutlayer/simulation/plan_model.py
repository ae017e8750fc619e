"""The model of a run, as far as a plan needs it: sizes, client-side weights, and a forward pass. Loads torch."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cutlayer.broker.manifest import Manifest
from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.lora import LoraLinear
from cutlayer.server_worker.modality_embedding import ModalityEmbedding
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.run_parts import check_codecs, make_engine, make_manifest, num_threads
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.tuning import goes_back_through_all
from cutlayer.simulation.plan_compute import BlockSizes, ModelSizes

__all__ = ["PlannedModel", "plan_model"]


@dataclass(slots=True)
class PlannedModel:
    """A run's model.

    Attributes:
        settings: The run.
        manifest: The run's manifest, as its worker would write it.
        built: Both halves of the model.
        sizes: What decides its cost.
    """

    settings: RunSettings
    manifest: Manifest
    built: BuiltModel
    sizes: ModelSizes

    @property
    def tokenizer_file(self) -> bytes:
        """The client-side weights."""
        return self.built.tokenizer_file

    @property
    def encoder(self) -> SplitEncoder:
        """The server side."""
        return self.built.encoder

    def engine(self) -> Engine:
        """Return the run's arithmetic, over a copy of the server side."""
        return make_engine(self.settings, replace(self.built, encoder=copy.deepcopy(self.encoder)))

    def forward(
        self, tokens: Mapping[str, NDArray[np.float32]], positions: Mapping[str, NDArray[np.intp]]
    ) -> NDArray[np.float32]:
        """Return the outputs (B, C) of tokens (B, K, D), by modality."""
        dtype = self.encoder.any_parameter.dtype
        with torch.no_grad():
            outputs_BC = self.encoder(
                {name: torch.from_numpy(tokens_BKD).to(dtype) for name, tokens_BKD in tokens.items()},
                positions={name: torch.from_numpy(places_BK) for name, places_BK in positions.items()},
            )
        found: NDArray[np.float32] = outputs_BC.float().numpy()
        return found

    def measured_forward_s(self) -> float:
        """Return how long this machine takes for one sample's forward pass, in seconds: the second of two microbatches.

        What is in the tokens changes nothing about it.
        """
        manifest = self.manifest
        samples = manifest.microbatch_samples
        tokens = {
            name: np.zeros((samples, spec.num_tokens, manifest.width), np.float32)
            for name, spec in manifest.modalities.items()
        }
        self.forward(tokens, {})
        started_s = time.perf_counter()
        self.forward(tokens, {})
        return (time.perf_counter() - started_s) / samples

    def step_passes(self) -> float:
        """Return what a training step takes, in forward passes: 3 where all trains.

        The first is the forward pass, a second the gradients of the activations, a third those of the weights (as
        `plan_compute`): the second for the blocks that gradients go back through, the third for those that train.
        LoRA's additions and the head are small beside them, and not counted.
        """
        tuning, num_blocks = self.manifest.tuning, len(self.sizes.blocks)
        num_trained = {"full": num_blocks, "last": tuning.blocks, "lora": 0, "frozen": 0}[tuning.mode]
        num_passed = num_blocks if goes_back_through_all(self.encoder) else num_trained
        return 1.0 + (num_passed + num_trained) / num_blocks


def plan_model(settings: RunSettings) -> PlannedModel:
    """Build the model of a run and look at it.

    Raises:
        SettingsError: When the run's model or one of its codecs cannot be had.
    """
    check_codecs(settings)
    torch.set_num_threads(num_threads(settings))
    built = build(settings, settings.run.seed)
    manifest = make_manifest(settings, built)
    built.encoder.eval()
    return PlannedModel(settings, manifest, built, _sizes(manifest, built))


def _sizes(manifest: Manifest, built: BuiltModel) -> ModelSizes:
    encoder = built.encoder
    lengths = []
    for name in encoder.names:
        embedding = encoder.embeddings[f"{name}_tokens"]
        assert isinstance(embedding, ModalityEmbedding)
        num_prefix = 0 if embedding.prefix is None else embedding.prefix.shape[1]
        lengths.append(num_prefix + manifest.num_tokens(name))
    return ModelSizes(
        width=built.width,
        num_classes=manifest.task.num_outputs,
        sequences=(sum(lengths),) if encoder.fusion == "early" else tuple(lengths),
        blocks=tuple(_block(block) for block in encoder.vit.blocks),
        num_encoder_parameters=built.num_parameters + _of_private_head(manifest),
        num_tokenizer_parameters=built.num_tokenizer_parameters,
        num_norm_parameters=_count(encoder.vit.norm) + _count(encoder.vit.fc_norm),
    )


def _of_private_head(manifest: Manifest) -> int:
    """Return the parameters of a head that the server side lacks, and the whole model has."""
    return 0 if manifest.head is None else manifest.task.num_outputs * (manifest.width + 1)


def _block(block: nn.Module) -> BlockSizes:
    linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    adapted = [module for name, module in linears.items() if name in ("attn.qkv", "attn.proj")]
    return BlockSizes(
        num_parameters=_count(block) - sum(_num_added(module) for module in linears.values()),
        linear_weights=sum(module.weight.numel() for module in linears.values()),
        lora_dimensions=tuple((module.in_features, module.out_features) for module in adapted),
    )


def _num_added(module: nn.Linear) -> int:
    """Return the parameters of a linear map's LoRA, which is no part of the model that is planned for others."""
    return module.lora_a.numel() + module.lora_b.numel() if isinstance(module, LoraLinear) else 0


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
