"""The reference of runs with heads at the agents: the uncut model with a head a site, trained by plain torch."""

from __future__ import annotations

import torch

from cutlayer.broker.learning_rate import learning_rate_factor
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.private_head import first_head
from cutlayer.edge_agent.tokenizers import load_tokenizers
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.optimizer import make_optimizer
from cutlayer.server_worker.settings import OptimizerSettings, RunSettings
from cutlayer.server_worker.whole_model import WholeModel
from support.torch_losses import torch_losses

__all__ = ["train_with_heads"]

Weights = dict[str, torch.Tensor]


def train_with_heads(settings: RunSettings, sites: dict[str, ArrayDataset]) -> tuple[Weights, dict[str, Weights]]:
    """Train on synchronous windows, one microbatch of each site that has one left; each site's head by itself.

    Returns:
        The encoder's weights by name, and those of each site's head.
    """
    built = build(settings, settings.run.seed)
    model = WholeModel(built.encoder, built.tokenizer_file, settings.modalities).train()
    optimizer, tokenizers = (
        make_optimizer(built.encoder, settings.optimizer),
        load_tokenizers(settings.modalities, built.tokenizer_file),
    )
    run, done = settings.run, 0
    plans = {
        topic: EpochPlan(run.seed, topic, run.epochs, data.num_samples("train"), 0, run.microbatch_samples)
        for topic, data in sites.items()
    }
    heads = {topic: _Head(settings, plan.epochs * plan.num_train) for topic, plan in plans.items()}
    planned = sum(plan.epochs * plan.num_train for plan in plans.values())
    for step in range(max(plan.total_steps for plan in plans.values())):
        losses = []
        for topic, plan in sorted(plans.items()):
            if step >= plan.total_steps:
                continue
            batch = sites[topic].batch("train", plan.train_indices(step))
            features = {
                name: torch.from_numpy(tokenizer.features(batch.inputs[name])).to(built.encoder.any_parameter.dtype)
                for name, tokenizer in tokenizers.items()
            }
            outputs_BC = heads[topic].linear(model(features).double())
            losses.append(torch_losses(settings.task, outputs_BC, batch.targets))
        losses_B = torch.cat(losses)
        done += len(losses_B)
        optimizer.zero_grad()
        for head in heads.values():
            head.optimizer.zero_grad()
        losses_B.sum().backward()  # type: ignore[no-untyped-call]
        for parameter in built.encoder.parameters():
            if parameter.grad is not None:
                parameter.grad /= len(losses_B)
        _step(optimizer, settings.optimizer, built.encoder, done / planned)
        for head, loss_B in zip([heads[t] for t in sorted(heads) if step < plans[t].total_steps], losses, strict=True):
            head.step(settings.optimizer, len(loss_B))
    encoder = {name: value.detach().clone() for name, value in built.encoder.named_parameters()}
    return encoder, {topic: dict(head.linear.state_dict()) for topic, head in heads.items()}


class _Head:
    def __init__(self, settings: RunSettings, planned: int) -> None:
        first = first_head("alike", settings.run.seed, settings.task.num_outputs, _width(settings))
        self.linear = torch.nn.Linear(_width(settings), settings.task.num_outputs, dtype=torch.float64)
        self.linear.load_state_dict({name: torch.from_numpy(value) for name, value in first.items()})
        own = settings.optimizer
        decay = [
            {"params": [self.linear.weight], "weight_decay": own.weight_decay},
            {"params": [self.linear.bias], "weight_decay": 0.0},
        ]
        self.optimizer: torch.optim.Optimizer
        if own.name == "adamw":
            self.optimizer = torch.optim.AdamW(decay, lr=own.lr, betas=own.betas)
        else:
            self.optimizer = torch.optim.SGD(decay, lr=own.lr, momentum=own.momentum)
        self._planned, self._done = planned, 0

    def step(self, settings: OptimizerSettings, num_samples: int) -> None:
        self._done += num_samples
        for parameter in self.linear.parameters():
            assert parameter.grad is not None
            parameter.grad /= num_samples
        _step(self.optimizer, settings, self.linear, self._done / self._planned)


def _step(
    optimizer: torch.optim.Optimizer, settings: OptimizerSettings, model: torch.nn.Module, progress: float
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * learning_rate_factor(
            progress, warmup_ratio=settings.warmup_ratio, min_lr_ratio=settings.min_lr_ratio
        )
    if settings.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimizer.step()


def _width(settings: RunSettings) -> int:
    width = settings.model.options["embed_dim"]
    assert isinstance(width, int)
    return width
