"""CPU time of one linear map's forward and backward pass: trained, with LoRA, and with LoRA by parametrization.

Parametrization (torch.nn.utils.parametrize) makes W + B A anew each time; Cutlayer's LoRA applies A and B to the input.
They take turns, in one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from cutlayer.server_worker.lora import LoraLinear


class Added(nn.Module):
    """W + alpha / rank * B A, with the alpha and rank of the run settings' defaults."""

    def __init__(self, outputs: int, inputs: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.b = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the sum."""
        return weight + 2.0 * self.b @ self.a


def step_s(module: nn.Module, x_TD: Tensor) -> float:
    """Return the CPU seconds of a pass on new versions of what trains, as an engine makes it."""
    newest = {name: value.detach().clone().requires_grad_() for name, value in trained(module).items()}
    began = time.process_time()
    outputs = functional_call(module, newest, (x_TD,), tie_weights=False)
    torch.autograd.grad(outputs.sum(), [x_TD, *newest.values()])
    return time.process_time() - began


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64 * 34)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--passes", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for width in (128, 384, 768):
        by_parametrization = nn.Linear(width, 3 * width).requires_grad_(False)
        parametrize.register_parametrization(
            by_parametrization, "weight", Added(3 * width, width, arguments.rank), unsafe=True
        )
        modules = {
            "trained": nn.Linear(width, 3 * width),
            "LoRA": LoraLinear(nn.Linear(width, 3 * width), arguments.rank, 2.0 * arguments.rank),
            "by parametrization": by_parametrization,
        }
        x_TD = torch.randn(arguments.tokens, width, requires_grad=True)
        seconds: dict[str, list[float]] = {name: [] for name in modules}
        for number in range(arguments.passes + 2):
            for name, module in modules.items():
                taken = step_s(module, x_TD)
                if number >= 2:  # the first ones warm up
                    seconds[name].append(taken)
        whole = statistics.median(seconds["trained"])
        ratios = "  ".join(f"{name}: {statistics.median(times) / whole:.2f}" for name, times in seconds.items())
        print(f"{width:4d} x {3 * width:4d}  {1e3 * whole:6.1f} ms trained;  {ratios}", flush=True)


if __name__ == "__main__":
    main()
