"""What other ways to train the same model on the same data would move: federated averaging, and sending the raw data.

Their bytes are computed and bare: no protocol around them, nothing lost, no evaluation. That is in their favour.

*Federated averaging* (McMahan et al., arXiv 1602.05629, algorithm 1): each round every site takes the trained
parameters and sends its own back, as float32: 2 x 4 B x parameters x rounds. Trained are all of them, or the last k
blocks with the norm behind them and the head, or LoRA's matrices (Hu et al., arXiv 2106.09685, section 4.1), which are
r x (inputs + outputs) for each map that is adapted, here qkv and projection of each block, and the head. Where only
some are trained, the frozen rest goes down once, unless sites have it already.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.broker.errors import SettingsError
from cutlayer.simulation.plan_compute import ModelSizes, block_flops, forward_flops

__all__ = ["Federated", "federated_full", "federated_last_blocks", "federated_lora"]

FLOAT32_BYTES = 4
ADAM_FLOATS = 4
"""For each trained parameter: itself, its gradient, and Adam's two moments."""


@dataclass(frozen=True, slots=True)
class Federated:
    """One kind of federated averaging, for one site.

    Attributes:
        name: For people.
        num_trained: Parameters that are trained.
        num_frozen: Parameters that are not, and go down once.
        rounds: Rounds.
        flops: Operations for one training sample, forward and backward.
    """

    name: str
    num_trained: int
    num_frozen: int
    rounds: int
    flops: int

    @property
    def up_bytes(self) -> int:
        """Bytes from the site in all rounds."""
        return FLOAT32_BYTES * self.num_trained * self.rounds

    @property
    def frozen_bytes(self) -> int:
        """Bytes of the frozen rest, which goes down once."""
        return FLOAT32_BYTES * self.num_frozen

    @property
    def down_bytes(self) -> int:
        """Bytes to the site in all rounds, the frozen rest included."""
        return self.up_bytes + self.frozen_bytes

    @property
    def total_bytes(self) -> int:
        """Both directions."""
        return self.up_bytes + self.down_bytes

    @property
    def memory_bytes(self) -> int:
        """What parameters, gradients and Adam's moments take; activations come on top."""
        return FLOAT32_BYTES * (ADAM_FLOATS * self.num_trained + self.num_frozen)


def federated_full(model: ModelSizes, rounds: int, tokenizer_flops: int) -> Federated:
    """Return federated averaging of all parameters: 3 x forward for each sample."""
    flops = 3 * (forward_flops(model) + tokenizer_flops)
    return Federated("all parameters", model.num_parameters, 0, rounds, flops)


def federated_last_blocks(model: ModelSizes, num_blocks: int, rounds: int, tokenizer_flops: int) -> Federated:
    """Return federated averaging of the last blocks, the norm and the head: one forward pass, and twice theirs back.

    Raises:
        SettingsError: When the model has fewer blocks.
    """
    if not 1 <= num_blocks <= len(model.blocks):
        raise SettingsError(
            f"--fed-blocks {num_blocks} of a model that has {len(model.blocks)}",
            f"choose 1 to {len(model.blocks)}",
        )
    blocks = model.blocks[-num_blocks:]
    trained = sum(block.num_parameters for block in blocks) + model.num_norm_parameters + model.num_head_parameters
    trained_flops = sum(block_flops(block, model.sequences, model.width) for block in blocks)
    trained_flops += 2 * model.width * model.num_classes
    return Federated(
        f"the last {num_blocks} blocks" if num_blocks > 1 else "the last block",
        trained,
        model.num_parameters - trained,
        rounds,
        forward_flops(model) + tokenizer_flops + 2 * trained_flops,
    )


def federated_lora(model: ModelSizes, rank: int, rounds: int, tokenizer_flops: int) -> Federated:
    """Return federated averaging of LoRA's matrices and the head: a forward pass, and the activations' gradients."""
    if rank < 1:
        raise SettingsError(f"--fed-rank {rank}", "choose 1 or more, such as 8")
    pairs = [pair for block in model.blocks for pair in block.lora_dimensions]
    adapters = sum(rank * (inputs + outputs) for inputs, outputs in pairs)
    num_tokens = sum(model.sequences)
    return Federated(
        f"LoRA of rank {rank}",
        adapters + model.num_head_parameters,
        model.num_parameters - model.num_head_parameters,
        rounds,
        2 * forward_flops(model) + tokenizer_flops + 6 * adapters * num_tokens,
    )
