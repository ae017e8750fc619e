"""The reference: the uncut model, trained in one process by plain PyTorch on the batches that the agents send."""

from __future__ import annotations

import numpy as np
import torch

from cutlayer.broker.learning_rate import learning_rate_factor
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.tokenizers import load_tokenizers
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.optimizer import make_optimizer
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.whole_model import WholeModel
from support.torch_losses import torch_losses

__all__ = ["train_whole"]


def train_whole(settings: RunSettings, sites: dict[str, ArrayDataset]) -> tuple[dict[str, torch.Tensor], float]:
    """Train the uncut model on synchronous windows: one microbatch of each site that has one left.

    Where tokenizers are trained, the gradient that a site's step gives them is part of the window of the site's next
    step, which it goes up with; that of a site's last step goes nowhere. Nothing else is delayed: all sites tokenize
    for a window with the weights of the window before.

    Returns:
        The server side's weights by name, and the sum of the loss over all samples of all steps.
    """
    built = build(settings, settings.run.seed)
    trains_tokenizers = built.encoder.tokenizers is not None
    model = WholeModel(built.encoder, built.tokenizer_file, settings.modalities, train_tokenizers=trains_tokenizers)
    model.train()
    optimizer = make_optimizer(built.encoder, settings.optimizer)
    tokenizers = load_tokenizers(settings.modalities, built.tokenizer_file)
    dtype = built.encoder.any_parameter.dtype
    plans = {
        topic: EpochPlan(
            settings.run.seed,
            topic,
            settings.run.epochs,
            data.num_samples("train"),
            data.num_samples("test"),
            settings.run.microbatch_samples,
        )
        for topic, data in sites.items()
    }
    planned = settings.run.epochs * sum(plan.num_train for plan in plans.values())
    done, loss_sum = 0, 0.0
    delayed: dict[str, list[torch.Tensor]] = {}
    for step in range(max(plan.total_steps for plan in plans.values())):
        batches = {
            topic: sites[topic].batch("train", plan.train_indices(step))
            for topic, plan in sorted(plans.items())
            if step < plan.total_steps
        }
        patches = {
            name: torch.from_numpy(
                np.concatenate([tokenizers[name].features(batch.inputs[name]) for batch in batches.values()])
            ).to(dtype)
            for name in tokenizers
        }
        present = {
            name: torch.from_numpy(
                np.concatenate(
                    [batch.present.get(name, np.ones(len(batch.targets), bool)) for batch in batches.values()]
                )
            )
            for name in tokenizers
        }
        targets = np.concatenate([batch.targets for batch in batches.values()])
        losses_B = torch_losses(settings.task, model(patches, None, present), targets)
        loss_sum += losses_B.sum().item()
        done += len(targets)
        for group in optimizer.param_groups:
            group["lr"] = settings.optimizer.lr * learning_rate_factor(
                done / planned,
                warmup_ratio=settings.optimizer.warmup_ratio,
                min_lr_ratio=settings.optimizer.min_lr_ratio,
            )
        optimizer.zero_grad()
        now: dict[str, list[torch.Tensor]] = {}
        if trains_tokenizers:
            parts = torch.split(losses_B, [len(batch.targets) for batch in batches.values()])
            for topic, losses_b in zip(batches, parts, strict=True):
                leaves = tuple(model.tokenizers.parameters())
                now[topic] = list(torch.autograd.grad(losses_b.sum(), leaves, retain_graph=True))
        trained = [parameter for parameter in built.encoder.parameters() if parameter.requires_grad]
        torch.autograd.backward(losses_B.mean(), inputs=trained)
        if trains_tokenizers and delayed:
            _take_gradients(model, [delayed[topic] for topic in batches], len(targets))
        if settings.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(built.encoder.parameters(), settings.optimizer.clip_norm)
        optimizer.step()
        if trains_tokenizers:
            delayed = now
            _take_weights(model)
    return {name: value.detach().clone() for name, value in built.encoder.named_parameters()}, loss_sum


def _take_gradients(model: WholeModel, gradients: list[list[torch.Tensor]], num_samples: int) -> None:
    """Give the tokenizers' weights, as the worker holds them, the mean of gradients of the whole model's."""
    assert model.encoder.tokenizers is not None
    held = dict(model.encoder.tokenizers.named_parameters())
    for (name, _), *parts in zip(model.tokenizers.named_parameters(), *gradients, strict=True):
        held[name].grad = torch.stack(parts).sum(dim=0) / num_samples


def _take_weights(model: WholeModel) -> None:
    assert model.encoder.tokenizers is not None
    model.tokenizers.load_state_dict(model.encoder.tokenizers.state_dict())
