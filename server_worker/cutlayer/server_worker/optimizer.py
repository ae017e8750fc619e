"""The optimizer over the encoder's master parameters, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.settings import OptimizerSettings
from cutlayer.server_worker.timm_import import param_groups_weight_decay

__all__ = ["load_optimizer_state", "make_optimizer", "optimizer_state"]


def make_optimizer(model: SplitEncoder, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return torch's AdamW (arXiv 1711.05101) or SGD with momentum over the model's trainable parameters.

    Biases, norms and whatever `model.no_weight_decay()` names are not decayed, which is timm's convention.

    Args:
        model: Its parameters are stepped in place.
        settings: The [optimizer] section.
    """
    groups = param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=model.no_weight_decay())
    # fused: one pass over each tensor instead of a dozen.
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
    # Not fused: torch's fused SGD (2.13) fails where a parameter has its first gradient later than others, as trained
    # tokenizers and modalities that come late have.
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, foreach=True)


_QUANTITIES: dict[type[torch.optim.Optimizer], frozenset[str]] = {
    torch.optim.AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
    torch.optim.SGD: frozenset({"momentum_buffer"}),
}


def optimizer_state(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return a copy of the optimizer's state, as `<parameter>/<quantity>` (`head.weight/exp_avg`).

    Learning rate and other settings are not in it: they come from the run settings.

    Args:
        parameters: Those that it steps, by name. Not the model, which holds others while it runs functionally.
        optimizer: The optimizer.
    """
    return {
        f"{name}/{quantity}": value.detach().clone()
        for name, parameter in parameters.items()
        for quantity, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)  # SGD without momentum keeps None
    }


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` returned.

    Raises:
        ValueError: When a tensor belongs to no parameter of the model, has another shape, or is none of this
            optimizer's.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loaded: dict[Tensor, dict[str, Tensor]] = {}
    for path, value in state.items():
        name, _, quantity = path.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None:
            raise ValueError(f"optimizer state {path!r} belongs to no parameter of this model")
        if quantity not in _QUANTITIES[type(optimizer)]:
            raise ValueError(f"optimizer state {path!r} is not of {type(optimizer).__name__}")
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(f"optimizer state {path!r} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
        dtype = parameter.dtype if value.ndim else value.dtype  # the step counter stays float32
        loaded.setdefault(parameter, {})[quantity] = value.to(parameter.device, dtype, copy=True)
    optimizer.state.clear()
    optimizer.state.update(loaded)
