"""Microbatches through the encoder as one batch: checked, put together, modalities dropped, and cut apart again.

Axes: b samples of a microbatch, B samples of a group, M modalities, N tokens, K of them that came, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.modality_dropout import draw_keep
from cutlayer.server_worker.passes import ForwardItem

__all__ = ["GroupPass", "finite_outputs", "rows_of"]


class GroupPass:
    """Runs groups through one encoder.

    Args:
        encoder: Its structure, device and dtype; the parameters come with each group.
        seed: Of modality dropout.
        modality_dropout: Probability that a modality of a training sample is hidden, 0..1, 1 excluded.
    """

    def __init__(self, encoder: SplitEncoder, seed: int, modality_dropout: float) -> None:
        self._encoder = encoder
        self._seed = seed
        self._modality_dropout = modality_dropout

    def check(self, items: Sequence[ForwardItem]) -> None:
        """Check that microbatches fit together, and the encoder.

        Raises:
            ValueError: When they do not, or activations are not (b, K, D) of a known modality.
        """
        if not items or not items[0].tokens:
            raise ValueError("a group has at least one microbatch, and a microbatch at least one modality")
        if len({item.batch_key for item in items}) > 1 or len({item.key for item in items}) < len(items):
            raise ValueError("the microbatches of a group have one mode, the same modalities and distinct keys")
        for item in items:
            for name, tokens_bND in item.tokens.items():
                if name not in self._encoder.num_tokens:
                    raise ValueError(f"{item.key!r} has modality {name!r}, the encoder has {self._encoder.names}")
                num_tokens, places_bK = self._encoder.num_tokens[name], item.positions.get(name)
                num_kept = num_tokens if places_bK is None else places_bK.shape[1]
                wanted = (item.num_samples, num_kept, self._encoder.width)
                if tokens_bND.shape != wanted or not item.num_samples:
                    raise ValueError(f"activations {name!r} of {item.key!r} are {tokens_bND.shape}, not {wanted}")
                if places_bK is not None and not 0 <= places_bK.min() <= places_bK.max() <= num_tokens:
                    raise ValueError(f"positions of {name!r} of {item.key!r} are not all from 0 to {num_tokens}")

    def run(self, items: Sequence[ForwardItem], weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Run microbatches that `check` lets by.

        Args:
            items: The microbatches.
            weights: The encoder's parameters, by name.

        Returns:
            The outputs (B, C) of all items, one after the other, and by modality the tokens (B, K, D) that they are of.
        """
        train = items[0].mode == "train"
        if self._encoder.training != train:
            self._encoder.train(train)
        # concatenate copies, so torch never sees the read-only arrays of the wire.
        tokens = {
            name: self.to_torch(np.concatenate([item.tokens[name] for item in items])) for name in items[0].tokens
        }
        positions = {
            name: torch.from_numpy(np.concatenate([self._places(item, name) for item in items])).to(self._device)
            for name in sorted({name for item in items for name in item.positions})
        }
        if train and self._encoder.tokenizers is not None:
            tokens = {name: tokens_BKD.requires_grad_() for name, tokens_BKD in tokens.items()}
        keep = self._draw_keep(items) if train else None
        with torch.set_grad_enabled(train):
            outputs_BC: Tensor = torch.func.functional_call(
                self._encoder,
                weights,
                (tokens, keep, positions),
                tie_weights=False,  # the encoder ties none, and the search costs half a millisecond
            )
        return outputs_BC, tokens

    def to_torch(self, array: NDArray[np.floating[Any]]) -> Tensor:
        """Return an array as the encoder takes it."""
        return torch.from_numpy(array).to(self._encoder.any_parameter)  # its device and dtype

    def _places(self, item: ForwardItem, name: str) -> NDArray[np.intp]:
        """Return which tokens a microbatch has of a modality, (b, K)."""
        places_bK = item.positions.get(name)
        if places_bK is not None:
            return places_bK
        return np.tile(np.arange(self._encoder.num_tokens[name], dtype=np.intp), (item.num_samples, 1))

    def _draw_keep(self, items: Sequence[ForwardItem]) -> dict[str, Tensor] | None:
        names = sorted(items[0].tokens)
        if not self._modality_dropout or len(names) == 1:
            return None
        draws_bM = [
            draw_keep(self._seed, item.key, (item.num_samples, len(names)), self._modality_dropout) for item in items
        ]
        keep_BM = torch.from_numpy(np.concatenate(draws_bM)).to(self._device)
        return dict(zip(names, keep_BM.unbind(dim=1), strict=True))

    @property
    def _device(self) -> torch.device:
        return self._encoder.any_parameter.device


def rows_of(items: Sequence[ForwardItem]) -> Iterator[tuple[Hashable, slice]]:
    """Yield each microbatch's key, and its rows in the batch."""
    start = 0
    for item in items:
        yield item.key, slice(start, start + item.num_samples)
        start += item.num_samples


def finite_outputs(
    items: Sequence[ForwardItem], outputs_BC: Tensor
) -> tuple[dict[Hashable, NDArray[np.float32]], tuple[Hashable, ...]]:
    """Return each microbatch's outputs where they are finite, and the keys of the others."""
    values_BC = outputs_BC.detach().cpu().numpy()
    outputs = {key: values_BC[rows].astype(np.float32) for key, rows in rows_of(items)}
    refused = tuple(key for key, output_bC in outputs.items() if not np.isfinite(output_bC).all())
    return {key: output_bC for key, output_bC in outputs.items() if key not in refused}, refused
