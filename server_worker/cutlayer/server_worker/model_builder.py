"""From run settings to both halves of the model: the encoder, and the tokenizers that agents download.

Axis: D width.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import safetensors.torch
import torch

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.modalities import ImageSpec
from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.server_worker.backbone import create_vit
from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.held_tokenizers import HeldTokenizers
from cutlayer.server_worker.modality_embedding import ModalityEmbedding
from cutlayer.server_worker.settings import ModelSettings, RunSettings
from cutlayer.server_worker.timm_import import VisionTransformer
from cutlayer.server_worker.tokenizer_weights import check_trainable, initial_weights
from cutlayer.server_worker.tuning import num_trained, tune
from cutlayer.server_worker.vocabulary_files import vocabulary_contents

__all__ = ["BuiltModel", "build"]

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_MAX_NAME_LENGTH = 256


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """Both halves of a run's model.

    Attributes:
        encoder: The server side, in the dtype of the settings; with the tokenizers, where they are trained.
        tokenizer_file: The client side: a safetensors file with `<modality>.<part>`, float32, of each part that the
            modality's specification names, and `<modality>.vocabulary`, uint8, of vocabularies that are files.
        num_parameters: Parameters of the encoder, tokenizers and LoRA's additions apart.
        num_trained_parameters: Parameters of the encoder that train, LoRA's additions included, tokenizers apart.
        num_tokenizer_parameters: Parameters of all tokenizers.
        width: D.
        name: The timm model and its options, for people.
    """

    encoder: SplitEncoder
    tokenizer_file: bytes
    num_parameters: int
    num_trained_parameters: int
    num_tokenizer_parameters: int
    width: int
    name: str


def build(settings: RunSettings, seed: int) -> BuiltModel:
    """Build both halves. The same settings and seed give the same bytes; torch's global generator stays put.

    Args:
        settings: The run settings.
        seed: Of every random draw; 0 <= seed < 2**63.

    Raises:
        SettingsError: When the [model] section cannot be satisfied.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit = create_vit(settings.model)
        _check_first_block(vit, settings)
        has_weights = settings.model.pretrained or settings.model.weights is not None
        if not has_weights:
            _warn_of_image_size(settings)
        tokenizers = initial_weights(vit, settings.modalities, pretrained=has_weights)
        encoder = SplitEncoder(
            vit,
            {name: spec.grid for name, spec in settings.modalities.items()},
            num_classes=settings.task.num_outputs if settings.model.head == "server" else 0,
            fusion=settings.model.fusion,
            orders={name: spec.order for name, spec in settings.modalities.items()},
            missing=settings.model.missing,
            pair=settings.task if isinstance(settings.task, RetrievalSpec) else None,
            first_block=settings.model.first_block,
        )
        if not has_weights:
            _spread_positions(encoder)
        num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
        # A checkpoint of a ViT has seen images and nothing else.
        known = [name for name, spec in settings.modalities.items() if has_weights and spec.kind == "image"]
        tune(encoder, settings.tuning, known)
    num_trained_parameters = num_trained(encoder)
    if num_trained_parameters == 0 and settings.tokenizers.mode == "frozen":
        raise SettingsError(
            f'[model] head = "agent" and [tuning] mode = "{settings.tuning.mode}" leave nothing that the worker trains',
            'set [tuning] mode to "last" or "lora", or embeddings to "all"',
        )
    vocabularies = {
        f"{name}.vocabulary": torch.frombuffer(bytearray(content), dtype=torch.uint8)
        for name, content in vocabulary_contents(settings.modalities, settings.vocabularies).items()
    }
    tokenizer_file = safetensors.torch.save({**tokenizers, **vocabularies})
    if settings.tokenizers.mode == "trainable":
        check_trainable(tokenizers)
        encoder.tokenizers = HeldTokenizers(tokenizer_file, torch.float32)
    return BuiltModel(
        encoder=encoder.to(_DTYPES[settings.model.dtype]),
        tokenizer_file=tokenizer_file,
        num_parameters=num_parameters,
        num_trained_parameters=num_trained_parameters,
        num_tokenizer_parameters=sum(tensor.numel() for tensor in tokenizers.values()),
        width=encoder.width,
        name=_name_for_people(settings.model),
    )


def _warn_of_image_size(settings: RunSettings) -> None:
    """Warn of an image size that no image has: only weights from elsewhere, whose positions are resampled, have one."""
    given = settings.model.options.get("img_size")
    images = {name: spec for name, spec in settings.modalities.items() if isinstance(spec, ImageSpec)}
    sizes = [[spec.height, spec.width] for spec in images.values()]
    wanted = [given, given] if isinstance(given, int) else given
    if given is not None and images and wanted not in sizes:
        log.warning(
            "[model] options img_size = %s has no effect: the images are %s\nfix: leave it out, or mend height and "
            "width of the modality",
            given,
            ", ".join(f"{spec.height} x {spec.width} ({name})" for name, spec in images.items()),
        )


def _check_first_block(vit: VisionTransformer, settings: RunSettings) -> None:
    first, depth, num_prefix = settings.model.first_block, len(vit.blocks), vit.num_prefix_tokens
    if first >= depth:
        raise SettingsError(
            f"[model] first_block = {first}, and {settings.model.name} has {depth} blocks", f"choose 0 to {depth - 1}"
        )
    for name, spec in settings.modalities.items():
        if first and spec.num_tokens <= num_prefix:
            raise SettingsError(
                f"[modalities.{name}] num_tokens = {spec.num_tokens} has no place for the {num_prefix} prefix tokens "
                "that [model] first_block brings",
                "count them, too",
            )


def _spread_positions(encoder: SplitEncoder) -> None:
    """Give new positions the variance of the tokens that they are added to.

    timm draws them with a standard deviation of 0.02, for patch embeddings that start as small. Beside random
    projections of variance 1 such positions are all but invisible: in a prototype of the digits run (10 epochs, one
    seed, timm's default layers) test accuracy was 0.61 with them and 0.86 with positions of variance 1.
    """
    for embedding in encoder.embeddings.values():
        assert isinstance(embedding, ModalityEmbedding)
        if embedding.position is not None:
            torch.nn.init.normal_(embedding.position, std=1.0)


def _name_for_people(model: ModelSettings) -> str:
    options = ", ".join(f"{key}={value}" for key, value in sorted(model.options.items()))
    return (f"{model.name} ({options})" if options else model.name)[:_MAX_NAME_LENGTH]
