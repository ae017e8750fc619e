"""Makes microbatches whole: tensors that came are decoded and kept, references are looked up in the store.

Axes: B samples of a microbatch, F fresh ones (which came as tensors), K tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Activations
from cutlayer.broker.ragged_tokens import unpack_rows
from cutlayer.broker.sample_refs import pack_mask, unpack_mask, unpack_numbers
from cutlayer.broker.tensors import decode_tensor
from cutlayer.server_worker.assembled import Assembled, Lacking, all_places, positions_of
from cutlayer.server_worker.change_assembler import assemble_changes
from cutlayer.server_worker.store_keeper import StoreKeeper

__all__ = ["Assembled", "Assembler", "Lacking"]

_Value = TypeVar("_Value", np.float32, np.intp)


class Assembler:
    """Assembles the microbatches of one worker.

    Args:
        keeper: Holds the store of activations.
    """

    def __init__(self, keeper: StoreKeeper) -> None:
        self._keeper = keeper

    def assemble(self, manifest: Manifest, agent: str, message: Activations) -> Assembled | Lacking:
        """Make a microbatch whole, which the session has checked.

        Args:
            manifest: The run.
            agent: Whose it is.
            message: The microbatch.

        Raises:
            MalformedMessage: When its tensors cannot be decoded.
        """
        if message.bases:
            return assemble_changes(self._keeper.store, manifest, agent, message)
        stored_B = unpack_mask(message.stored, message.num_samples)
        fresh, fresh_positions = _decode(manifest, message, int((~stored_B).sum()))
        numbers_B = unpack_numbers(message.samples, message.num_samples) if message.samples else None
        if not stored_B.any():
            return Assembled(fresh, fresh_positions, 0, self._keep(agent, numbers_B, stored_B, fresh, fresh_positions))
        assert numbers_B is not None, "the session refuses references without numbers"
        store = self._keeper.store
        if store is None:
            return Lacking(pack_mask(stored_B))
        fetched = store.get(agent, numbers_B[stored_B], message.modalities)
        wrong = any(
            tokens.shape[1:] != (manifest.num_tokens(name), manifest.width)
            or (name in manifest.reduction and name not in fetched.positions)
            for name, tokens in fetched.tokens.items()
        )
        if wrong or fetched.is_missing.any():
            missing_B = stored_B.copy()
            missing_B[stored_B] = True if wrong else fetched.is_missing
            return Lacking(pack_mask(missing_B))
        unkept = self._keep(agent, numbers_B, stored_B, fresh, fresh_positions)
        if stored_B.all():
            return Assembled(fetched.tokens, fetched.positions, int(stored_B.sum()), unkept)
        tokens = {name: _join(stored_B, fetched.tokens[name], fresh[name]) for name in message.modalities}
        positions: dict[str, NDArray[np.intp]] = {}
        for name in sorted(fetched.positions.keys() | fresh_positions.keys()):
            # Ragged only in one of the two parts: the other has all tokens.
            whole_BN = all_places(message.num_samples, manifest.modalities[name].num_tokens)
            stored_bK = fetched.positions.get(name, whole_BN[stored_B])
            positions[name] = _join(stored_B, stored_bK, fresh_positions.get(name, whole_BN[~stored_B]))
        return Assembled(tokens, positions, int(stored_B.sum()), unkept)

    def _keep(
        self,
        agent: str,
        numbers_B: NDArray[np.int64] | None,
        stored_B: NDArray[np.bool_],
        fresh: Mapping[str, NDArray[np.float32]],
        positions: Mapping[str, NDArray[np.intp]],
    ) -> bytes:
        """Put what came as tensors into the store; return the mask of the samples that it has no room for."""
        store = self._keeper.store
        if numbers_B is None or store is None or stored_B.all():
            return b""
        kept_F = store.put(agent, numbers_B[~stored_B], fresh, positions=positions)
        unkept_B = ~stored_B
        unkept_B[unkept_B] = ~kept_F
        return pack_mask(unkept_B)


def _decode(
    manifest: Manifest, message: Activations, num_fresh: int
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.intp]]]:
    """Return tokens (F, K, D) and positions (F, K) of what came as tensors."""
    tokens = {name: decode_tensor(tensor, what=f"activations of {name}") for name, tensor in message.tensors}
    positions = positions_of(manifest, message, num_fresh)
    for name, places_FK in positions.items():
        tokens[name] = unpack_rows(tokens[name], places_FK, manifest.modalities[name].num_tokens)
    return tokens, positions


def _join(stored_B: NDArray[np.bool_], stored: NDArray[_Value], fresh: NDArray[_Value]) -> NDArray[_Value]:
    """Put rows from the store and fresh ones into the microbatch's order."""
    joined: NDArray[_Value] = np.empty((len(stored_B), *stored.shape[1:]), stored.dtype)
    joined[stored_B], joined[~stored_B] = stored, fresh
    return joined
