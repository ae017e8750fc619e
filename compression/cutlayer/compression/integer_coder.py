"""An entropy coder for groups of integers around zero, distributed about normally or geometrically.

Range asymmetric numeral systems (Duda, arXiv 1311.2540), interleaved over lanes as in Giesen, "Interleaved
entropy coders" (arXiv 1402.3392), so that NumPy works on one symbol of every lane at a time. The model of a
group is one byte, the form of its distribution and its standard deviation: where a few hundred or thousand numbers
make up a message, a histogram for each group would cost more than it saves. Coordinates of tokens are about normal;
output gradients of a trained model, most of them nearly zero, take up to a third less as geometric ones.

Layout (all little-endian; compression/README.md has it in words):

    models    one byte a group
    1         number of escaped numbers E if below 255, else 255 and
    u4        E
    4 W       final states of the lanes
    2 K       words, in the order in which a decoder takes them; K follows from the number of bytes
    4 E       escaped numbers, signed
    rest      low bits, packed, least significant first

Suffixes: G groups, S symbols (numbers of all groups), W lanes, T steps.
"""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.errors import CorruptError, WrongLengthError
from cutlayer.compression.integer_models import TOTAL, TOTAL_BITS, best_models, split_models, tables_of_all_classes

MAX_MAGNITUDE = 2**31 - 1
"""Numbers that are coded are at most this far from zero."""

_STATE_LOW = 1 << 16
_WORD_BITS = 16
_RENORM_BITS = 16 + _WORD_BITS - TOTAL_BITS
_STEPS = 256
"""Symbols of a lane, at least. A lane costs about 3 bytes, a step some 8 microseconds."""

_MANY = 255
_COUNT = struct.Struct("<I")


def encode_groups(groups: Sequence[NDArray[np.int64]]) -> bytes:
    """Encode groups of integers.

    Args:
        groups: One axis each, empty ones too; magnitudes at most `MAX_MAGNITUDE`.

    Returns:
        The bytes; the groups' lengths are not among them.
    """
    tables = tables_of_all_classes()
    lengths_G = np.array([group.size for group in groups], np.int64)
    values_S = np.concatenate([*groups, np.empty(0, np.int64)])
    models_G = best_models(values_S, lengths_G)
    classes_G, low_bits_G = split_models(models_G)
    high_S = values_S >> np.repeat(low_bits_G, lengths_G)
    classes_S = np.repeat(classes_G, lengths_G)
    largest_S = tables.largest[classes_S]
    is_escape_S = np.abs(high_S) > largest_S
    symbols_S = tables.first_symbol[classes_S] + np.where(is_escape_S, 0, high_S + largest_S + 1)
    states_W, words = _push(tables.frequency[symbols_S], tables.start[symbols_S])
    escapes = high_S[is_escape_S].astype("<i4")
    return b"".join(
        (
            models_G.tobytes(),
            bytes([escapes.size]) if escapes.size < _MANY else bytes([_MANY]) + _COUNT.pack(escapes.size),
            states_W.astype("<u4").tobytes(),
            words.astype("<u2").tobytes(),
            escapes.tobytes(),
            _pack_low_bits(groups, low_bits_G),
        )
    )


def decode_groups(view: memoryview, lengths: Sequence[int], codec: str) -> list[NDArray[np.int64]]:
    """Decode what `encode_groups` wrote.

    Args:
        view: The bytes, from anyone.
        lengths: How many integers each group has; the caller has bounded their sum.
        codec: The name that errors carry.

    Returns:
        The groups.

    Raises:
        WrongLengthError: The bytes are too few or too many.
        CorruptError: They are not what an encoder writes.
    """
    lengths_G, num_symbols = np.array(lengths, np.int64), sum(lengths)
    num_lanes, count_at = _num_lanes(num_symbols), len(lengths)
    # Without escapes; a count of four bytes is looked at only where there is as much as that.
    states_at = count_at + 1
    if view.nbytes < states_at + 4 * num_lanes:
        raise WrongLengthError(codec, states_at + 4 * num_lanes, view.nbytes)
    classes_G, low_bits_G = split_models(np.frombuffer(view, np.uint8, len(lengths)))
    num_escapes = view[count_at]
    if num_escapes == _MANY and view.nbytes >= states_at + _COUNT.size:
        (num_escapes,) = _COUNT.unpack_from(view, states_at)
        states_at += _COUNT.size
    words_at = states_at + 4 * num_lanes
    low_bits_at = view.nbytes - -(-int(low_bits_G @ lengths_G) // 8)
    escapes_at = low_bits_at - 4 * num_escapes
    if escapes_at < words_at or (escapes_at - words_at) % 2:
        raise WrongLengthError(codec, words_at + view.nbytes - escapes_at, view.nbytes)
    states_W = np.frombuffer(view, "<u4", num_lanes, offset=states_at).astype(np.uint32)
    words = np.frombuffer(view[words_at:escapes_at], "<u2").astype(np.uint32)
    escapes = np.frombuffer(view[escapes_at:low_bits_at], "<i4").astype(np.int64)

    tables = tables_of_all_classes()
    symbols_S = _pop(states_W, words, np.repeat((classes_G * TOTAL).astype(np.uint32), lengths_G), codec)
    values_S = tables.value[symbols_S].astype(np.int64)
    is_escape_S = symbols_S == np.repeat(tables.first_symbol[classes_G], lengths_G)
    if np.count_nonzero(is_escape_S) != num_escapes:
        raise CorruptError(codec, "another number of escapes than declared")
    values_S[is_escape_S] = escapes
    groups = np.split(values_S, np.cumsum(lengths_G))[:-1]  # what is left over is empty
    if low_bits_G.any():
        _append_low_bits(view[low_bits_at:], groups, low_bits_G)
    return groups


def _num_lanes(num_symbols: int) -> int:
    return max(num_symbols // _STEPS, min(num_symbols, 1))


def _push(
    frequency_S: NDArray[np.uint32], start_S: NDArray[np.uint32]
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Encode from the last symbol to the first; symbol s is in lane s modulo W."""
    num_lanes = _num_lanes(frequency_S.size)
    if num_lanes == 0:
        return np.empty(0, np.uint32), np.empty(0, np.uint16)
    num_steps = -(-frequency_S.size // num_lanes)
    # A symbol that has all of the range changes no state: so it may fill up.
    num_filled = num_steps * num_lanes - frequency_S.size
    frequency_TW = np.pad(frequency_S, (0, num_filled), constant_values=TOTAL).reshape(num_steps, num_lanes)
    start_TW = np.pad(start_S, (0, num_filled)).reshape(num_steps, num_lanes)
    below_limit_TW = ((frequency_TW.astype(np.uint64) << np.uint64(_RENORM_BITS)) - np.uint64(1)).astype(np.uint32)
    gain_TW = np.uint32(TOTAL) - frequency_TW
    state_W = np.full(num_lanes, _STATE_LOW, np.uint32)
    quotient_W = np.empty_like(state_W)
    words_TW = np.empty((num_steps, num_lanes), np.uint16)
    is_word_TW = np.empty((num_steps, num_lanes), np.bool_)
    for step in range(num_steps - 1, -1, -1):
        is_word_W = np.greater(state_W, below_limit_TW[step], out=is_word_TW[step])
        np.copyto(words_TW[step], state_W, casting="unsafe")
        np.right_shift(state_W, _WORD_BITS, out=state_W, where=is_word_W)
        # q * total + remainder + start = state + q * (total - frequency) + start
        np.floor_divide(state_W, frequency_TW[step], out=quotient_W)
        np.multiply(quotient_W, gain_TW[step], out=quotient_W)
        np.add(state_W, quotient_W, out=state_W)
        np.add(state_W, start_TW[step], out=state_W)
    return state_W, words_TW[is_word_TW]


def _pop(
    state_W: NDArray[np.uint32], words: NDArray[np.uint32], table_S: NDArray[np.uint32], codec: str
) -> NDArray[np.uint16]:
    """Decode from the first symbol to the last.

    Raises:
        CorruptError: Words are left over or missing, or a lane does not end as every encoder starts.
    """
    tables, num_lanes, num_symbols = tables_of_all_classes(), state_W.size, table_S.size
    symbols_S = np.empty(num_symbols, np.uint16)
    taken = 0
    for first in range(0, num_symbols, max(num_lanes, 1)):
        part = slice(first, min(first + num_lanes, num_symbols))
        lanes_W = state_W[: part.stop - first]
        slot_W = lanes_W & np.uint32(TOTAL - 1)
        symbol_W = np.take(tables.symbol_of_slot, table_S[part] + slot_W, out=symbols_S[part])
        lanes_W >>= np.uint32(TOTAL_BITS)
        lanes_W *= tables.frequency[symbol_W]
        lanes_W += slot_W
        lanes_W -= tables.start[symbol_W]
        needs_word_W = lanes_W < _STATE_LOW
        num_needed = int(np.count_nonzero(needs_word_W))
        if num_needed:
            if taken + num_needed > words.size:
                raise CorruptError(codec, "fewer words than symbols need")
            lanes_W[needs_word_W] = (lanes_W[needs_word_W] << np.uint32(_WORD_BITS)) | words[taken : taken + num_needed]
            taken += num_needed
    if taken != words.size or (state_W != _STATE_LOW).any():
        raise CorruptError(codec, "not where an encoder starts after the last symbol")
    return symbols_S


def _pack_low_bits(groups: Sequence[NDArray[np.int64]], low_bits_G: NDArray[np.int64]) -> bytes:
    """Write the low bits of the numbers, one after the other, the least significant first."""
    parts = [np.empty(0, np.uint8)]
    for group, num_bits in zip(groups, low_bits_G.tolist(), strict=True):
        bits = np.empty((group.size, num_bits), np.uint8)
        for bit in range(num_bits):
            bits[:, bit] = group >> bit & 1
        parts.append(bits.reshape(-1))
    return np.packbits(np.concatenate(parts), bitorder="little").tobytes()


def _append_low_bits(view: memoryview, groups: Sequence[NDArray[np.int64]], low_bits_G: NDArray[np.int64]) -> None:
    """Read what `_pack_low_bits` wrote, and append it to the numbers in place."""
    all_bits, taken = np.unpackbits(np.frombuffer(view, np.uint8), bitorder="little"), 0
    for group, num_bits in zip(groups, low_bits_G.tolist(), strict=True):
        bits = all_bits[taken : taken + group.size * num_bits].reshape(group.size, num_bits)
        group <<= num_bits
        for bit in range(num_bits):
            group |= bits[:, bit].astype(np.int64) << bit
        taken += group.size * num_bits
