"""From run settings to both halves of the model: the encoder, and the tokenizers that agents download.

Axes: B batch, N tokens, P values of a patch, D width, C classes.

A tokenizer is one linear map, `tokens_BND = patches_BNP @ weight_PD + bias_D`. The values of a patch are in the
order channels, rows, columns (rows are mel bands and columns frames, for audio), which is the order of the
convolution that a ViT's patch embedding is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn

from cutlayer.broker.manifest import AudioSpec, ImageSpec
from cutlayer.server_worker.backbone import create_vit
from cutlayer.server_worker.encoder import ModalityEmbedding, SplitEncoder
from cutlayer.server_worker.held_tokenizers import HeldTokenizers
from cutlayer.server_worker.settings import ModelSettings, RunSettings
from cutlayer.server_worker.timm_import import adapt_input_conv, resample_patch_embed
from cutlayer.server_worker.tuning import num_trained, tune

__all__ = ["BuiltModel", "WholeModel", "build"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_MAX_NAME_LENGTH = 256


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """Both halves of a run's model.

    Attributes:
        encoder: The server side, in the dtype of the settings; with the tokenizers, where they are trained.
        tokenizer_file: The client side: a safetensors file with `<modality>.weight`, (P, D), and
            `<modality>.bias`, (D,), float32.
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

    Tokenizers of a model with pretrained weights are its patch embedding, fitted to each modality's channels and
    patch (as AST, arXiv 2104.01778, section 2.2; FlexiViT, arXiv 2212.08013, section 3.4). Otherwise they are
    random projections that keep the variance of their input.

    Args:
        settings: The run settings.
        seed: Of every random draw; 0 <= seed < 2**63.

    Raises:
        SettingsError: When the [model] section cannot be satisfied.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit = create_vit(settings.model)
        has_weights = settings.model.pretrained or settings.model.weights is not None
        tokenizers: dict[str, Tensor] = {}
        for name, spec in sorted(settings.modalities.items()):
            if has_weights:
                weight_PD, bias_D = _fitted_tokenizer(vit.patch_embed.proj, spec)
            else:
                weight_PD = torch.randn(spec.patch_values, vit.embed_dim) / math.sqrt(spec.patch_values)
                bias_D = torch.zeros(vit.embed_dim)
            tokenizers |= {f"{name}.weight": weight_PD, f"{name}.bias": bias_D}
        encoder = SplitEncoder(
            vit,
            {name: spec.grid for name, spec in settings.modalities.items()},
            num_classes=settings.task.num_outputs,
            fusion=settings.model.fusion,
            missing=settings.model.missing,
        )
        if not has_weights:
            _spread_positions(encoder)
        num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
        # A checkpoint of a ViT has seen images and nothing else.
        known = [name for name, spec in settings.modalities.items() if has_weights and spec.kind == "image"]
        tune(encoder, settings.tuning, known)
    num_trained_parameters = num_trained(encoder)
    tokenizer_file = safetensors.torch.save(tokenizers)
    if settings.tokenizers.mode == "trainable":
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


def _fitted_tokenizer(conv: nn.Conv2d, spec: ImageSpec | AudioSpec) -> tuple[Tensor, Tensor]:
    """Return weight (P, D) and bias (D,): the convolution, fitted to the modality's channels and patch."""
    channels = spec.channels if isinstance(spec, ImageSpec) else 1
    kernel = conv.weight.detach().float()  # (D, channels, rows, columns)
    # A single channel takes the sum over the channels: a grey image is then embedded as if it were repeated.
    kernel = adapt_input_conv(channels, kernel, base_chans=conv.in_channels)
    kernel = resample_patch_embed(kernel, [spec.patch, spec.patch])
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().float()
    return kernel.reshape(conv.out_channels, -1).T.contiguous(), bias.clone()


def _name_for_people(model: ModelSettings) -> str:
    options = ", ".join(f"{key}={value}" for key, value in sorted(model.options.items()))
    return (f"{model.name} ({options})" if options else model.name)[:_MAX_NAME_LENGTH]


class WholeModel(nn.Module):
    """The uncut model, in one process: tokenizers and encoder. The reference that split training has to equal.

    Args:
        encoder: The server side; used, not copied.
        tokenizer_file: The client side, from `BuiltModel`.
        train_tokenizers: Whether tokenizers have gradients.
    """

    def __init__(self, encoder: SplitEncoder, tokenizer_file: bytes, *, train_tokenizers: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizers = nn.ModuleDict()
        dtype = encoder.head.weight.dtype
        tensors = safetensors.torch.load(tokenizer_file)
        for name in encoder.names:
            weight_DV = tensors[f"{name}.weight"].T.contiguous()
            linear = nn.Linear(weight_DV.shape[1], weight_DV.shape[0], dtype=dtype)
            linear.load_state_dict({"weight": weight_DV, "bias": tensors[f"{name}.bias"]})
            self.tokenizers[f"{name}_tokens"] = linear.requires_grad_(train_tokenizers)

    def forward(self, patches: Mapping[str, Tensor], keep: Mapping[str, Tensor] | None = None) -> Tensor:
        """Run a batch.

        Args:
            patches: (B, N, P) by modality.
            keep: As in `SplitEncoder.forward`.

        Returns:
            Logits (B, C).
        """
        tokens = {name: self.tokenizers[f"{name}_tokens"](values) for name, values in patches.items()}
        logits_BC: Tensor = self.encoder(tokens, keep)
        return logits_BC
