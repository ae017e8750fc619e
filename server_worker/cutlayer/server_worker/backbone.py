"""Get a plain Vision Transformer from timm, or say clearly why not."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from cutlayer.broker.errors import SettingsError
from cutlayer.server_worker.settings import ModelSettings
from cutlayer.server_worker.timm_import import PatchEmbed, VisionTransformer, create_model, list_models

__all__ = ["create_vit"]


def create_vit(settings: ModelSettings) -> VisionTransformer:
    """Build the timm model that the settings name, without a head, with its weights where they are asked for.

    A file of weights goes through timm's own loading, which resamples positions and patches to the model's sizes
    and leaves the old head out.

    Args:
        settings: The [model] section.

    Returns:
        The model, float32, on the CPU; drawn from torch's global generator where it has no weights.

    Raises:
        SettingsError: When timm knows no such model or option, the weights are missing or do not fit, or the
            model is no plain VisionTransformer.
    """
    overlay = None if settings.weights is None else _weights_from(settings.weights)
    arguments: dict[str, Any] = {**settings.options, "num_classes": 0, "pretrained_cfg_overlay": overlay}
    try:
        model = create_model(settings.name, pretrained=settings.pretrained or overlay is not None, **arguments)
    except Exception as error:  # timm raises whatever its parts raise
        raise _creation_error(settings, error) from error
    return _plain(settings, model)


def _weights_from(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise SettingsError(f"[model] weights = {str(path)!r}: no such file", "name an existing file of weights")
    # An .npz holds weights in the layout of the original JAX implementation, which timm converts by another path.
    return {"file": str(path), "source": "", "custom_load": path.suffix == ".npz"}


def _creation_error(settings: ModelSettings, error: Exception) -> SettingsError:
    detail = str(error).strip().partition("\n")[0] or type(error).__name__
    if settings.name.partition(".")[0] not in list_models() and ":" not in settings.name:
        near = difflib.get_close_matches(settings.name, _plain_vits(), n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else "name a plain ViT, such as vit_tiny_patch16_224"
        return SettingsError(f"[model] name = {settings.name!r}: timm has no such model", fix)
    if settings.weights is not None:
        return SettingsError(
            f"[model] weights = {str(settings.weights)!r} cannot be loaded into {settings.name}: {detail}",
            "name weights of this model, and set [model] options to those that they were trained with",
        )
    if settings.pretrained:
        return SettingsError(
            f"[model] pretrained: the weights of {settings.name} cannot be had: {detail}",
            "check the network, give a downloaded file with --weights FILE, or set [model] pretrained = false",
        )
    return SettingsError(
        f"[model] options = {settings.options!r} are refused by timm's {settings.name}: {detail}",
        "use arguments of timm's VisionTransformer",
    )


def _plain_vits() -> list[str]:
    """Return names of models that `_plain` takes: of timm's ViTs in one file all are."""
    return [*list_models("vit_*", module="vision_transformer"), *list_models("deit3_*")]


def _plain(settings: ModelSettings, model: object) -> VisionTransformer:
    """Refuse what the split does not carry over, rather than train something subtly else."""
    if type(model) is not VisionTransformer:
        kind = type(model).__name__
        problem = f"[model] name = {settings.name!r} is a {kind}, not a plain VisionTransformer"
        raise SettingsError(problem, "name a plain ViT, such as vit_tiny_patch16_224")
    if type(model.patch_embed) is not PatchEmbed:
        raise SettingsError(
            f"[model] name = {settings.name!r} has a {type(model.patch_embed).__name__} before its blocks, and "
            "agents tokenize with one linear map",
            "name a ViT whose patch embedding is one convolution, such as vit_tiny_patch16_224",
        )
    if not model.global_pool:
        raise SettingsError(
            "[model] options: global_pool = '' leaves no feature for the head", "use 'token' or 'avg', or leave it out"
        )
    return model
