"""The loss of each sample by PyTorch's own functions, for every task: the reference of what agents compute."""

from __future__ import annotations

import numpy as np
import torch

from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RegressionSpec, TaskSpec
from cutlayer.edge_agent.batches import Targets

__all__ = ["torch_losses"]


def torch_losses(task: TaskSpec, outputs_BC: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Return the loss of each sample: of several outputs their mean, where what is not known counts as no loss."""
    match task:
        case ClassificationSpec():
            return torch.nn.functional.cross_entropy(outputs_BC, torch.from_numpy(targets), reduction="none")
        case MultiLabelSpec():
            labels_BC = torch.from_numpy(targets).to(outputs_BC.dtype)
            weights = task.positive_weights
            losses_BC = torch.nn.functional.binary_cross_entropy_with_logits(
                outputs_BC,
                labels_BC.clamp_min(0.0),
                reduction="none",
                pos_weight=None if weights is None else torch.tensor(weights, dtype=outputs_BC.dtype),
            )
            return torch.where(labels_BC >= 0, losses_BC, 0.0).mean(dim=1)
        case RegressionSpec():
            means = np.array([target.mean for target in task.targets])
            stds = np.array([target.std for target in task.targets])
            true_BC = torch.from_numpy((targets.astype(np.float64) - means) / stds).to(outputs_BC.dtype)
            is_known_BC = ~true_BC.isnan()
            true_BC = torch.where(is_known_BC, true_BC, 0.0)
            if task.huber_delta is None:
                losses_BC = torch.nn.functional.mse_loss(outputs_BC, true_BC, reduction="none")
            else:
                losses_BC = torch.nn.functional.huber_loss(
                    outputs_BC, true_BC, reduction="none", delta=task.huber_delta
                )
            return torch.where(is_known_BC, losses_BC, 0.0).mean(dim=1)
        case _:
            raise AssertionError(f"no reference for {task.kind}")
