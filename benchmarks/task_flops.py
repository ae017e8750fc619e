"""Floating-point operations of a site for one training sample: as an agent, and as a client of federated averaging.

A client's are counted by torch on the real encoder and head, forward and backward. An agent's are those of its
tokenizers, by the same rule: products of matrices count 2 for each multiplication and addition; norms, nonlinearities
and softmax are not counted, on either side. Neither are spectrograms and the like, which both compute, nor codecs;
processor seconds have these.

Axes: B samples, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_parts import make_manifest
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.plan_compute import projection_flops, raw_sample_bytes

VIT_B16 = "vit-b16"
VIT_B16_EPOCHS = 10


@dataclass(frozen=True, slots=True)
class Work:
    """What a training sample costs a site.

    Attributes:
        model: The model, for people.
        epochs: Of the run.
        is_sent_once: Whether an agent tokenizes a training sample once, or in each epoch.
        num_parameters: Parameters that train.
        tokenize: Operations of an agent for a pass over a sample: its tokenizers.
        forward: Operations of encoder and head, forward.
        step: The same forward and backward.
        raw_bytes: Bytes of a raw sample.
    """

    model: str
    epochs: int
    is_sent_once: bool
    num_parameters: int
    tokenize: int
    forward: int
    step: int
    raw_bytes: int

    def agent_flops(self, *, is_sent_once: bool) -> int:
        """Return the operations of an agent for a training sample in a whole run."""
        return self.tokenize * (1 if is_sent_once else self.epochs)

    @property
    def client_flops(self) -> int:
        """Operations of a federated client for a training sample in a whole run."""
        return self.epochs * (self.tokenize + self.step)

    def ratio(self, *, is_sent_once: bool) -> float:
        """Return how many times more a federated client computes."""
        agent = self.agent_flops(is_sent_once=is_sent_once)
        return self.client_flops / agent if agent else float("inf")

    def as_row(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return asdict(self)


def step_flops(module: nn.Module, *arguments: object) -> tuple[int, int]:
    """Count the operations of a forward pass, and of a forward and a backward pass.

    Args:
        module: Takes the arguments and returns a tensor.
        arguments: Of one batch; gradients of what in them does not require one are not computed.
    """
    # The fused attention of CPUs is not among what torch counts; its parts are.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        outputs: Tensor = module(*arguments)
        forward = counter.get_total_flops()
        outputs.sum().backward()  # type: ignore[no-untyped-call]
        return forward, counter.get_total_flops()


def work_of(settings: RunSettings) -> Work:
    """Count a run's work for one training sample that has all its tokens."""
    built = build(settings, settings.run.seed)
    manifest = make_manifest(settings, built)
    built.encoder.train()
    dtype = built.encoder.any_parameter.dtype
    tokens = {
        name: torch.zeros(1, spec.num_tokens, built.width, dtype=dtype) for name, spec in manifest.modalities.items()
    }
    forward, step = step_flops(built.encoder, tokens)
    return Work(
        model=built.name,
        epochs=settings.run.epochs,
        is_sent_once=settings.activations.mode == "once",
        num_parameters=built.num_trained_parameters,
        tokenize=projection_flops(manifest),
        forward=forward,
        step=step,
        raw_bytes=raw_sample_bytes(manifest.modalities),
    )


def vit_b16() -> RunSettings:
    """Return a run of ViT-B/16 on images of 224 x 224 pixels: its work is counted, and nothing trained."""
    return RunSettings.model_validate(
        {
            "run": {"epochs": VIT_B16_EPOCHS},
            "model": {"name": "vit_base_patch16_224"},
            "modalities": {"image": {"kind": "image", "height": 224, "width": 224, "channels": 3, "patch": 16}},
            "task": {"classes": [str(number) for number in range(1000)]},
        }
    )
