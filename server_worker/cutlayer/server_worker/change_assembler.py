"""Makes microbatches whole that came as changes since their samples' last visits (AQ-SGD, arXiv 2206.01299, section 3).

The store has each sample's last reconstruction, and how often it was sent. A change is added to the reconstruction that
it was taken from, and to no other: the count of visits has to be the agent's, and the sum has to have the agent's
checksum. Otherwise the agent is asked for the whole. A message that was decoded before (its graph was given up, or its
lease) finds its own result in the store and takes that.

Reconstructions are float16 at both ends, which takes half of an agent's memory; a store's float32 holds them exactly.

Axes: B samples, K tokens, D width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Activations
from cutlayer.broker.sample_refs import checksum_of, pack_mask, unpack_bases, unpack_numbers
from cutlayer.compression import CodecError, codec_from_name
from cutlayer.compression.delta import decode_change
from cutlayer.server_worker.activation_store import ActivationStore
from cutlayer.server_worker.assembled import Assembled, Lacking, positions_of

__all__ = ["assemble_changes"]


def assemble_changes(
    store: ActivationStore | None, manifest: Manifest, agent: str, message: Activations
) -> Assembled | Lacking:
    """Make a microbatch whole, which the session has checked.

    Args:
        store: Has the last reconstructions; None for a worker without a store.
        manifest: The run.
        agent: Whose it is.
        message: The microbatch.

    Raises:
        MalformedMessage: When its tensors cannot be decoded.
    """
    numbers_B = unpack_numbers(message.samples, message.num_samples)
    visits_B, checksum = unpack_bases(message.bases, message.num_samples)
    is_change_B = visits_B != 0
    next_B = np.where(is_change_B, visits_B + np.uint8(1), np.uint8(1))  # modulo 256
    bases = {
        name: np.zeros((message.num_samples, manifest.num_tokens(name), manifest.width), np.float16)
        for name in message.modalities
    }
    is_decoded_B = np.zeros(message.num_samples, bool)
    if is_change_B.any():
        found_B = _look_up(store, agent, numbers_B, bases, visits_B)
        is_decoded_B = is_change_B & ~found_B[0] & found_B[1]
        missing_B = is_change_B & ~found_B[0] & ~found_B[1]
        if missing_B.any():
            return Lacking(pack_mask(missing_B))
    stored = {name: base_BKD[is_decoded_B] for name, base_BKD in bases.items()}
    for name in bases:
        bases[name][~is_change_B] = 0
    whole = _decode(message, bases)
    for name, whole_BKD in whole.items():
        whole_BKD[is_decoded_B] = stored[name]
    positions = positions_of(manifest, message, message.num_samples)
    tokens = {name: whole_BKD.astype(np.float32) for name, whole_BKD in whole.items()}
    if checksum_of(list(whole.values())) != checksum:
        if is_change_B.any():
            return Lacking(pack_mask(is_change_B))
        # The agent's decoder rounds otherwise than this one: it must not take its result for what is here.
        return Assembled(tokens, positions, 0, pack_mask(~is_change_B))
    if store is None:
        return Assembled(tokens, positions)
    kept_B = store.put(agent, numbers_B, tokens, positions=positions, visits=next_B)
    return Assembled(tokens, positions, 0, pack_mask(~kept_B))


def _look_up(
    store: ActivationStore | None,
    agent: str,
    numbers_B: NDArray[np.int64],
    bases: dict[str, NDArray[np.float16]],
    visits_B: NDArray[np.uint8],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Fill in what the store has; return which samples it has as wanted, and which as they are to be afterwards."""
    nothing_B = np.zeros(len(numbers_B), bool)
    if store is None:
        return nothing_B, nothing_B
    fetched = store.get(agent, numbers_B, tuple(bases))
    for name, base_BKD in bases.items():
        if fetched.tokens[name].shape != base_BKD.shape:
            return nothing_B, nothing_B
    for name, base_BKD in bases.items():
        with np.errstate(over="ignore"):  # what came another way than this may be beyond float16; checksums differ then
            base_BKD[:] = fetched.tokens[name]
    is_there_B = ~fetched.is_missing
    return is_there_B & (fetched.visits == visits_B), is_there_B & (fetched.visits == visits_B + np.uint8(1))


def _decode(message: Activations, bases: dict[str, NDArray[np.float16]]) -> dict[str, NDArray[np.float16]]:
    whole: dict[str, NDArray[np.float16]] = {}
    for name, tensor in message.tensors:
        try:
            decoded_BKD = decode_change(codec_from_name(tensor.codec), tensor.data, bases[name])
        except CodecError as error:
            raise MalformedMessage(f"activations of {name}: {error}") from None
        whole[name] = decoded_BKD.astype(np.float16, copy=False)
    return whole
