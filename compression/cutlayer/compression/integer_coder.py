"""An entropy coder for groups of integers around zero, distributed about normally or geometrically.

Range asymmetric numeral systems (Duda, arXiv 1311.2540), interleaved over lanes as in Giesen, "Interleaved
entropy coders" (arXiv 1402.3392), so that NumPy works on one symbol of every lane at a time. The model of a
group is one byte, the form of its distribution and its standard deviation: where a few hundred or thousand numbers
make up a message, a histogram for each group would cost more than it saves. Coordinates of tokens are about normal;
output gradients of a trained model, most of them nearly zero, take up to a third less as geometric ones.

Frequencies come from integer arithmetic alone, so that every machine has the same.

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

import functools
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.errors import CorruptError, WrongLengthError

MAX_MAGNITUDE = 2**31 - 1
"""Numbers that are coded are at most this far from zero."""

_TOTAL_BITS = 14
_TOTAL = 1 << _TOTAL_BITS
_STATE_LOW = 1 << 16
_WORD_BITS = 16
_RENORM_BITS = 16 + _WORD_BITS - _TOTAL_BITS
_STEPS = 256
"""Symbols of a lane, at least. A lane costs about 3 bytes, a step some 8 microseconds."""

_CLASSES_AN_OCTAVE = 4
_NUM_CLASSES = 32
_GEOMETRIC = 128
"""Added to the model of a group whose distribution is geometric on either side."""
_SMALLEST_EXPONENT = -10
"""Class c has the standard deviation 2^((c - 10) / 4): 0.18 to 38. Neighbours differ by 19 %, which costs at most
0.01 bits a number."""
_MAX_LOW_BITS = 24
_MANY = 255
_COUNT = struct.Struct("<I")


class _Tables(NamedTuple):
    """Of all classes, one after the other: a class has symbols escape, -K, ..., K. Geometric ones last."""

    first_symbol: NDArray[np.int64]  # by class
    largest: NDArray[np.int64]  # K, by class
    bits: NDArray[np.float64]  # of a number, by class: a constant, and those for its magnitude and its square
    frequency: NDArray[np.uint32]  # by symbol
    start: NDArray[np.uint32]  # by symbol
    symbol_of_slot: NDArray[np.uint16]  # by class * _TOTAL + slot
    value: NDArray[np.int32]  # by symbol; that of an escape is 0


def encode_groups(groups: Sequence[NDArray[np.int64]]) -> bytes:
    """Encode groups of integers.

    Args:
        groups: One axis each, empty ones too; magnitudes at most `MAX_MAGNITUDE`.

    Returns:
        The bytes; the groups' lengths are not among them.
    """
    tables = _tables()
    lengths_G = np.array([group.size for group in groups], np.int64)
    values_S = np.concatenate([*groups, np.empty(0, np.int64)])
    models_G = _best_models(values_S, lengths_G)
    classes_G, low_bits_G = _split_models(models_G)
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
    classes_G, low_bits_G = _split_models(np.frombuffer(view, np.uint8, len(lengths)))
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

    tables = _tables()
    symbols_S = _pop(states_W, words, np.repeat((classes_G * _TOTAL).astype(np.uint32), lengths_G), codec)
    values_S = tables.value[symbols_S].astype(np.int64)
    is_escape_S = symbols_S == np.repeat(tables.first_symbol[classes_G], lengths_G)
    if np.count_nonzero(is_escape_S) != num_escapes:
        raise CorruptError(codec, "another number of escapes than declared")
    values_S[is_escape_S] = escapes
    groups = np.split(values_S, np.cumsum(lengths_G))[:-1]  # what is left over is empty
    if low_bits_G.any():
        _append_low_bits(view[low_bits_at:], groups, low_bits_G)
    return groups


@functools.cache
def _tables() -> _Tables:
    """Compute the classes' frequencies; the same everywhere, as no floating-point number decides one."""
    frequencies, values, largest, bits = [], [], [], []
    for index in range(2 * _NUM_CLASSES):
        top, frequency = _frequencies(index)
        largest.append(top)
        frequencies.append(frequency)
        values.append(np.concatenate([[0], np.arange(-top, top + 1)]))
        bits.append(_bits(index, top))
    sizes = np.array([frequency.size for frequency in frequencies])
    starts = [np.cumsum(frequency) - frequency for frequency in frequencies]
    frequency = np.concatenate(frequencies)
    return _Tables(
        first_symbol=np.cumsum(sizes) - sizes,
        largest=np.array(largest),
        bits=np.array(bits),
        frequency=frequency.astype(np.uint32),
        start=np.concatenate(starts).astype(np.uint32),
        symbol_of_slot=np.repeat(np.arange(frequency.size), frequency).astype(np.uint16),
        value=np.concatenate(values).astype(np.int32),
    )


def _frequencies(index: int) -> tuple[int, NDArray[np.int64]]:
    """Give K of a class and the frequencies of escape, -K, ..., K.

    That of k is 1 more than its share of what is left, rounded down, in fixed point. The share is exp(-k^2 / 2 s^2),
    or t^abs(k) where 2 t / (1 - t)^2 = s^2, with the standard deviation s: 1 / s^2 = 2^(-e/2) for e = index - 10.
    """
    exponent = index % _NUM_CLASSES + _SMALLEST_EXPONENT
    one = 1 << 64
    # 2^(-e/2) in fixed point, from integer square roots only.
    inverse_variance = math.isqrt(one * one >> exponent if exponent >= 0 else one * one << -exponent)
    if index < _NUM_CLASSES:
        ratio = _exp_of_minus(inverse_variance // 2, one)
        growth = ratio * ratio // one
    else:
        root = math.isqrt(2 * inverse_variance * one + inverse_variance * inverse_variance)
        ratio, growth = one + inverse_variance - root, one
    top = math.isqrt(64 * one // inverse_variance) + 2
    weights, weight = [one], one
    for _ in range(top):
        weight, ratio = weight * ratio // one, ratio * growth // one
        weights.append(weight)
    left = _TOTAL - (2 * top + 2)
    total = 2 * sum(weights) - one
    side = [1 + weight * left // total for weight in weights]
    frequency = np.array([1, *side[:0:-1], *side], np.int64)
    frequency[top + 1] += _TOTAL - frequency.sum()
    return top, frequency


def _bits(index: int, largest: int) -> tuple[float, float, float]:
    """Give what a number takes in a class: a constant, for its magnitude, and for its square. For encoders' choices."""
    precision = 2 ** (-(index % _NUM_CLASSES + _SMALLEST_EXPONENT) / (_CLASSES_AN_OCTAVE / 2))
    magnitude, square = 0.0, 0.5 * math.log2(math.e) * precision
    if index >= _NUM_CLASSES:
        magnitude, square = -math.log2(1 + precision - math.sqrt(2 * precision + precision**2)), 0.0
    numbers = np.arange(-largest, largest + 1)
    total = float(np.exp2(-magnitude * np.abs(numbers) - square * np.square(numbers)).sum())
    return math.log2(total * _TOTAL / (_TOTAL - numbers.size - 1)), magnitude, square


def _exp_of_minus(number: int, one: int) -> int:
    """Give exp(-number / one) * one by halving the argument, a series, and squaring."""
    halvings = max(number.bit_length() - one.bit_length() + 3, 0)
    reduced = number >> halvings
    term, total = one, one
    for index in range(1, 24):
        term = -(term * reduced // (one * index))
        total += term
    for _ in range(halvings):
        total = total * total // one
    return total


def _best_models(values_S: NDArray[np.int64], lengths_G: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Choose each group's class by the bits that it would take: magnitudes and squares are sufficient statistics."""
    models_G = np.zeros(lengths_G.size, np.uint8)
    is_there_G = lengths_G > 0
    if not is_there_G.any():
        return models_G
    starts_G = (np.cumsum(lengths_G) - lengths_G)[is_there_G]
    magnitude_S = np.abs(values_S).astype(np.float64)
    magnitude_G = np.add.reduceat(magnitude_S, starts_G) / lengths_G[is_there_G]
    square_G = np.add.reduceat(np.square(magnitude_S, out=magnitude_S), starts_G) / lengths_G[is_there_G]
    tables = _tables()
    # Beyond the widest class, low bits are stored as they are.
    widest = 2.0 ** ((_NUM_CLASSES - 0.5 + _SMALLEST_EXPONENT) / _CLASSES_AN_OCTAVE)
    low_bits_G = np.ceil(np.log2(np.maximum(np.sqrt(square_G) / widest, 1)))
    low_bits_G = np.minimum(low_bits_G, _MAX_LOW_BITS)
    statistics_3G = np.array([np.ones_like(square_G), magnitude_G / 2**low_bits_G, square_G / 4**low_bits_G])
    bits_CG = tables.bits @ statistics_3G
    is_narrow_C = np.arange(2 * _NUM_CLASSES) % _NUM_CLASSES < _NUM_CLASSES - _CLASSES_AN_OCTAVE
    bits_CG[np.ix_(is_narrow_C, low_bits_G > 0)] = np.inf
    family_G, class_G = np.divmod(bits_CG.argmin(axis=0), _NUM_CLASSES)
    models_G[is_there_G] = family_G * _GEOMETRIC + class_G + _CLASSES_AN_OCTAVE * low_bits_G.astype(np.int64)
    return models_G


def _split_models(models_G: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the class of each group and the number of low bits that are stored as they are."""
    family_G, width_G = np.divmod(models_G.astype(np.int64), _GEOMETRIC)
    low_bits_G = np.maximum((width_G - (_NUM_CLASSES - _CLASSES_AN_OCTAVE)) // _CLASSES_AN_OCTAVE, 0)
    return family_G * _NUM_CLASSES + width_G - _CLASSES_AN_OCTAVE * low_bits_G, low_bits_G


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
    frequency_TW = np.pad(frequency_S, (0, num_filled), constant_values=_TOTAL).reshape(num_steps, num_lanes)
    start_TW = np.pad(start_S, (0, num_filled)).reshape(num_steps, num_lanes)
    below_limit_TW = ((frequency_TW.astype(np.uint64) << np.uint64(_RENORM_BITS)) - np.uint64(1)).astype(np.uint32)
    gain_TW = np.uint32(_TOTAL) - frequency_TW
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
    tables, num_lanes, num_symbols = _tables(), state_W.size, table_S.size
    symbols_S = np.empty(num_symbols, np.uint16)
    taken = 0
    for first in range(0, num_symbols, max(num_lanes, 1)):
        part = slice(first, min(first + num_lanes, num_symbols))
        lanes_W = state_W[: part.stop - first]
        slot_W = lanes_W & np.uint32(_TOTAL - 1)
        symbol_W = np.take(tables.symbol_of_slot, table_S[part] + slot_W, out=symbols_S[part])
        lanes_W >>= np.uint32(_TOTAL_BITS)
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
