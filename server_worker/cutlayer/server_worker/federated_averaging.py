"""What federated averaging of the same training would have moved, to compare with (arXiv 1602.05629)."""

from __future__ import annotations

from cutlayer.broker.manifest import Manifest

__all__ = ["federated_averaging_bytes", "num_exchanged_parameters"]

FLOAT32_BYTES = 4


def num_exchanged_parameters(manifest: Manifest, num_client_parameters: int) -> int:
    """Return how many parameters federated averaging of the same training exchanges each round.

    The whole model where all of the encoder trains. Where a part of it does, that part, and the tokenizers where they
    train: what is frozen a client may have from elsewhere, so its first download is not counted.

    Args:
        manifest: The run.
        num_client_parameters: Parameters of the tokenizers.
    """
    if manifest.tuning.mode == "full" or manifest.num_trained_parameters is None:
        return manifest.num_parameters + num_client_parameters
    return manifest.num_trained_parameters + (manifest.tokenizers.mode == "trainable") * num_client_parameters


def federated_averaging_bytes(num_parameters: int, num_rounds: int, num_agents: int) -> int:
    """Return what federated averaging moves: its parameters in float32, down and up, each agent, each round.

    McMahan et al., arXiv 1602.05629, algorithm 1, with every client in every round and one local epoch a round.
    """
    return 2 * num_rounds * num_agents * num_parameters * FLOAT32_BYTES
