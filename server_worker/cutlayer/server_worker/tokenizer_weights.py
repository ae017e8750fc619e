"""What tokenizers begin with: a pretrained ViT's patch embedding where it fits, random maps elsewhere.

Axes: P values of a patch, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.messages import MAX_DIMENSION, MAX_MESSAGE_BYTES
from cutlayer.broker.modalities import AudioSpec, ImageSpec, ModalitySpec, TableSpec, TextSpec, TokensSpec
from cutlayer.broker.modality_spec import FLOAT32_BYTES
from cutlayer.server_worker.timm_import import VisionTransformer, adapt_input_conv, resample_patch_embed

__all__ = ["check_trainable", "initial_weights"]

MAX_TRAINED_BYTES = MAX_MESSAGE_BYTES - (1 << 16)
"""Of the weights of trained tokenizers, as float32; the rest of the message is names."""


def initial_weights(
    vit: VisionTransformer, modalities: Mapping[str, ModalitySpec], *, pretrained: bool
) -> dict[str, Tensor]:
    """Return the weights of all tokenizers, float32, by `<modality>.<part>`; drawn from torch's global generator.

    Images and spectrograms: the patch embedding of a ViT with pretrained weights, fitted to channels and patch (as
    AST, arXiv 2104.01778, section 2.2; FlexiViT, arXiv 2212.08013, section 3.4). Otherwise random maps that give
    tokens of variance 1 for input of variance 1; beside a pretrained ViT, tokens as large as its patch embedding
    gives for such input.

    Args:
        vit: The ViT; left as it is.
        modalities: Specification of each modality, by name.
        pretrained: Whether its weights are of any use.
    """
    conv = vit.patch_embed.proj
    scale = _output_scale(conv) if pretrained else 1.0
    weights: dict[str, Tensor] = {}
    for name, spec in sorted(modalities.items()):
        if pretrained and isinstance(spec, ImageSpec | AudioSpec):
            parts = _fitted(conv, spec)
        else:
            parts = {part: scale * tensor for part, tensor in _random(spec, vit.embed_dim).items()}
        weights |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    return weights


def check_trainable(weights: Mapping[str, Tensor]) -> None:
    """Check that weights can go over the wire, which trained ones do in one message.

    Raises:
        SettingsError: When they are too large; the text names the largest.
    """
    num_bytes = sum(tensor.numel() * FLOAT32_BYTES for tensor in weights.values())
    has_long = any(max(tensor.shape) > MAX_DIMENSION for tensor in weights.values())
    if has_long or num_bytes > MAX_TRAINED_BYTES:
        name, largest = max(weights.items(), key=lambda item: item[1].numel())
        raise SettingsError(
            f'[tokenizers] mode = "trainable": weights of {num_bytes:,} B, {name} {tuple(largest.shape)} among them, '
            f"are over {MAX_TRAINED_BYTES:,} B or {MAX_DIMENSION:,} rows, which is what a message may carry",
            'set it to "frozen", or take a smaller vocabulary',
        )


def _random(spec: ModalitySpec, width: int) -> dict[str, Tensor]:
    """Return parts that give tokens of variance 1."""
    shapes = spec.parameter_shapes(width)
    if isinstance(spec, TokensSpec):  # the sites' own
        return {}
    if isinstance(spec, TextSpec):
        return {part: torch.randn(shape) for part, shape in shapes.items()}
    if isinstance(spec, TableSpec):
        # Half of the variance says which column it is, half what is in it.
        return {part: torch.randn(shape) * math.sqrt(0.5) for part, shape in shapes.items()}
    weight_PD = torch.randn(shapes["weight"]) / math.sqrt(spec.patch_values)
    return {"weight": weight_PD, "bias": torch.zeros(width)}


def _output_scale(conv: nn.Conv2d) -> float:
    """Return the standard deviation of a convolution's outputs for independent input of variance 1."""
    return float(conv.weight.detach().float().square().sum(dim=(1, 2, 3)).mean().sqrt())


def _fitted(conv: nn.Conv2d, spec: ImageSpec | AudioSpec) -> dict[str, Tensor]:
    """Return the convolution's parts, fitted to the modality's channels and patch.

    The values of a patch are in the order channels, rows, columns (rows are mel bands and columns frames, for audio),
    which is the convolution's own.
    """
    kernel = conv.weight.detach().float()  # (D, channels, rows, columns)
    # A single channel takes the sum over the channels: a grey image is then embedded as if it were repeated.
    kernel = adapt_input_conv(spec.num_planes, kernel, base_chans=conv.in_channels)
    kernel = resample_patch_embed(kernel, list(spec.patch_sides))
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().float()
    return {"weight": kernel.reshape(conv.out_channels, -1).T.contiguous(), "bias": bias.clone()}
