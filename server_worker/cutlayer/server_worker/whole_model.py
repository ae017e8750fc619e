"""The uncut model, in one process: tokenizers and encoder. The reference that split training has to equal.

Axes: B batch, N tokens, D width, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor, nn

from cutlayer.broker.modalities import ModalitySpec
from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.torch_tokenizers import TorchTokenizer, torch_tokenizer

__all__ = ["WholeModel"]


class WholeModel(nn.Module):
    """Tokenizers and encoder.

    Args:
        encoder: The server side; used, not copied.
        tokenizer_file: The client side, from `model_builder.BuiltModel`.
        modalities: Specification of each modality, by name.
        train_tokenizers: Whether tokenizers have gradients.
    """

    def __init__(
        self,
        encoder: SplitEncoder,
        tokenizer_file: bytes,
        modalities: Mapping[str, ModalitySpec],
        *,
        train_tokenizers: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        dtype = encoder.any_parameter.dtype
        weights = safetensors.torch.load(tokenizer_file)
        # The suffix keeps modalities called "type" or "train" apart from nn.Module's own names.
        self.tokenizers = nn.ModuleDict(
            {
                f"{name}_tokens": torch_tokenizer(name, modalities[name], weights, dtype).requires_grad_(
                    train_tokenizers
                )
                for name in encoder.names
            }
        )

    def forward(
        self,
        features: Mapping[str, Tensor],
        keep: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Run a batch.

        Args:
            features: (B, ...) by modality, as `features` of the agent's tokenizers gives them.
            keep: As in `SplitEncoder.forward`.
            present: Which samples have a modality, bool (B); a modality that is not here, all of them have.

        Returns:
            Outputs (B, C).
        """
        tokens, positions = {}, {}
        for name, values in features.items():
            tokenizer = self.tokenizers[f"{name}_tokens"]
            assert isinstance(tokenizer, TorchTokenizer)
            tokens[name] = tokenizer(values)
            present_BN = tokenizer.presence(values)
            if present is not None and name in present:
                every_BN = torch.ones(tokens[name].shape[:2], dtype=torch.bool)
                present_BN = (every_BN if present_BN is None else present_BN) & present[name][:, None]
            if present_BN is not None and not bool(present_BN.all()):
                tokens[name], positions[name] = _in_front(tokens[name], present_BN)
        outputs_BC: Tensor = self.encoder(tokens, keep, positions)
        return outputs_BC


def _in_front(tokens_BND: Tensor, present_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Move the tokens that are there to the front; return them, zeros behind, and where they were, N behind."""
    num_tokens = present_BN.shape[1]
    positions_BN = torch.arange(num_tokens).where(present_BN, torch.tensor(num_tokens)).sort(dim=1).values
    padded_BSD = torch.cat([tokens_BND, tokens_BND.new_zeros(len(tokens_BND), 1, tokens_BND.shape[2])], dim=1)
    return padded_BSD.take_along_dim(positions_BN[:, :, None], dim=1), positions_BN
