"""The one door to timm: everything that Cutlayer uses of it, imported after torchvision was mended."""

from __future__ import annotations

from cutlayer.server_worker.torchvision_shim import declare_missing_operators

declare_missing_operators()

from timm import create_model, list_models  # noqa: E402
from timm.layers.patch_embed import PatchEmbed, resample_patch_embed  # noqa: E402
from timm.layers.pos_embed import resample_abs_pos_embed  # noqa: E402
from timm.models import adapt_input_conv  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]  # noqa: E402

__all__ = [
    "PatchEmbed",
    "VisionTransformer",
    "adapt_input_conv",
    "create_model",
    "list_models",
    "param_groups_weight_decay",
    "resample_abs_pos_embed",
    "resample_patch_embed",
]
