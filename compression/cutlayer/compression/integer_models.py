"""Which distributions groups of integers may have, and the frequencies that stand for them in `integer_coder`.

A class is normal or two-sided geometric, with one of 32 standard deviations. Where numbers are wider than the widest,
their low bits are stored as they are. Frequencies come from integer arithmetic alone: every machine has the same.

Suffixes: G groups, C classes, S numbers of all groups.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TOTAL_BITS = 14
TOTAL = 1 << TOTAL_BITS

_CLASSES_AN_OCTAVE = 4
_NUM_CLASSES = 32
_GEOMETRIC = 128
"""Added to the model of a group whose distribution is geometric on either side."""
_SMALLEST_EXPONENT = -10
"""Class c has the standard deviation 2^((c - 10) / 4): 0.18 to 38. Neighbours differ by 19 %, which costs at most
0.01 bits a number."""
_MAX_LOW_BITS = 24


class Tables(NamedTuple):
    """Of all classes, one after the other: a class has symbols escape, -K, ..., K. Geometric ones last."""

    first_symbol: NDArray[np.int64]  # by class
    largest: NDArray[np.int64]  # K, by class
    bits: NDArray[np.float64]  # of a number, by class: a constant, and those for its magnitude and its square
    frequency: NDArray[np.uint32]  # by symbol
    start: NDArray[np.uint32]  # by symbol
    symbol_of_slot: NDArray[np.uint16]  # by class * TOTAL + slot
    value: NDArray[np.int32]  # by symbol; that of an escape is 0


@functools.cache
def tables_of_all_classes() -> Tables:
    """Compute the classes' frequencies; the same everywhere, as no floating-point number decides one."""
    frequencies, values, largest, bits = [], [], [], []
    for index in range(2 * _NUM_CLASSES):
        top, frequency = frequencies_of_class(index)
        largest.append(top)
        frequencies.append(frequency)
        values.append(np.concatenate([[0], np.arange(-top, top + 1)]))
        bits.append(_bits(index, top))
    sizes = np.array([frequency.size for frequency in frequencies])
    starts = [np.cumsum(frequency) - frequency for frequency in frequencies]
    frequency = np.concatenate(frequencies)
    return Tables(
        first_symbol=np.cumsum(sizes) - sizes,
        largest=np.array(largest),
        bits=np.array(bits),
        frequency=frequency.astype(np.uint32),
        start=np.concatenate(starts).astype(np.uint32),
        symbol_of_slot=np.repeat(np.arange(frequency.size), frequency).astype(np.uint16),
        value=np.concatenate(values).astype(np.int32),
    )


def frequencies_of_class(index: int) -> tuple[int, NDArray[np.int64]]:
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
    left = TOTAL - (2 * top + 2)
    total = 2 * sum(weights) - one
    side = [1 + weight * left // total for weight in weights]
    frequency = np.array([1, *side[:0:-1], *side], np.int64)
    frequency[top + 1] += TOTAL - frequency.sum()
    return top, frequency


def _bits(index: int, largest: int) -> tuple[float, float, float]:
    """Give what a number takes in a class: a constant, for its magnitude, and for its square. For encoders' choices."""
    precision = 2 ** (-(index % _NUM_CLASSES + _SMALLEST_EXPONENT) / (_CLASSES_AN_OCTAVE / 2))
    magnitude, square = 0.0, 0.5 * math.log2(math.e) * precision
    if index >= _NUM_CLASSES:
        magnitude, square = -math.log2(1 + precision - math.sqrt(2 * precision + precision**2)), 0.0
    numbers = np.arange(-largest, largest + 1)
    total = float(np.exp2(-magnitude * np.abs(numbers) - square * np.square(numbers)).sum())
    return math.log2(total * TOTAL / (TOTAL - numbers.size - 1)), magnitude, square


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


def best_models(values_S: NDArray[np.int64], lengths_G: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Choose each group's class by the bits that it would take: magnitudes and squares are sufficient statistics."""
    models_G = np.zeros(lengths_G.size, np.uint8)
    is_there_G = lengths_G > 0
    if not is_there_G.any():
        return models_G
    starts_G = (np.cumsum(lengths_G) - lengths_G)[is_there_G]
    magnitude_S = np.abs(values_S).astype(np.float64)
    magnitude_G = np.add.reduceat(magnitude_S, starts_G) / lengths_G[is_there_G]
    square_G = np.add.reduceat(np.square(magnitude_S, out=magnitude_S), starts_G) / lengths_G[is_there_G]
    tables = tables_of_all_classes()
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


def split_models(models_G: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the class of each group and the number of low bits that are stored as they are."""
    family_G, width_G = np.divmod(models_G.astype(np.int64), _GEOMETRIC)
    low_bits_G = np.maximum((width_G - (_NUM_CLASSES - _CLASSES_AN_OCTAVE)) // _CLASSES_AN_OCTAVE, 0)
    return family_G * _NUM_CLASSES + width_G - _CLASSES_AN_OCTAVE * low_bits_G, low_bits_G
