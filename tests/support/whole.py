"""The reference: the uncut model, trained in one process by plain PyTorch on the batches that the agents send."""

from __future__ import annotations

import numpy as np
import torch

from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.tokenizers import load_tokenizers
from cutlayer.server_worker.model_builder import WholeModel, build
from cutlayer.server_worker.optimizer import make_optimizer
from cutlayer.server_worker.schedule import learning_rate_factor
from cutlayer.server_worker.settings import RunSettings

__all__ = ["train_whole"]


def train_whole(settings: RunSettings, sites: dict[str, ArrayDataset]) -> tuple[dict[str, torch.Tensor], float]:
    """Train the uncut model on synchronous windows: one microbatch of each site that has one left.

    Returns:
        The encoder's weights by name, and the sum of the loss over all samples of all steps.
    """
    built = build(settings, settings.run.seed)
    model = WholeModel(built.encoder, built.tokenizer_file)
    model.train()
    optimizer = make_optimizer(built.encoder, settings.optimizer)
    tokenizers = load_tokenizers(settings.modalities, built.tokenizer_file)
    dtype = built.encoder.head.weight.dtype
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
    for step in range(max(plan.total_steps for plan in plans.values())):
        batches = [
            sites[topic].batch("train", plan.train_indices(step))
            for topic, plan in sorted(plans.items())
            if step < plan.total_steps
        ]
        patches = {
            name: torch.from_numpy(np.concatenate([tokenizers[name].features(b.inputs[name]) for b in batches])).to(
                dtype
            )
            for name in tokenizers
        }
        labels_B = torch.from_numpy(np.concatenate([batch.labels_B for batch in batches]))
        loss = torch.nn.functional.cross_entropy(model(patches), labels_B, reduction="sum")
        loss_sum += loss.item()
        done += len(labels_B)
        for group in optimizer.param_groups:
            group["lr"] = settings.optimizer.lr * learning_rate_factor(
                done / planned,
                warmup_ratio=settings.optimizer.warmup_ratio,
                min_lr_ratio=settings.optimizer.min_lr_ratio,
            )
        optimizer.zero_grad()
        torch.autograd.backward(loss / len(labels_B))
        if settings.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(built.encoder.parameters(), settings.optimizer.clip_norm)
        optimizer.step()
    return {name: value.detach().clone() for name, value in built.encoder.named_parameters()}, loss_sum
