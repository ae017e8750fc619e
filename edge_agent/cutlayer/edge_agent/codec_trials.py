"""Tries the codecs of a ladder on the agent's own activations: what each takes, and how wrong it is.

It costs time, so a microbatch is tried now and then only, the first included: at most `MAX_SAMPLES` samples, once in
`TRIAL_EVERY` microbatches with tensors. With R rungs that is less than R / 64 of an encoding and a decoding more for
each microbatch, 6 % of the encoding's own time and as much decoding with four of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression import CodecError, codec_from_name

__all__ = ["MAX_SAMPLES", "TRIAL_EVERY", "CodecTrials"]

TRIAL_EVERY = 64
MAX_SAMPLES = 64
NUM_KEPT = 8
"""Trials that count: sizes are their mean, errors their largest."""


class CodecTrials:
    """Sizes and errors of some codecs.

    Args:
        codecs: Their names.
    """

    def __init__(self, codecs: Sequence[str]) -> None:
        self.codecs = tuple(codecs)
        self._num_seen = 0
        self._sizes: list[deque[float]] = [deque(maxlen=NUM_KEPT) for _ in codecs]
        self._errors: list[deque[float]] = [deque(maxlen=NUM_KEPT) for _ in codecs]

    @property
    def has_any(self) -> bool:
        """Whether there was a trial."""
        return bool(self._sizes[0])

    def take(self, tokens: Sequence[NDArray[np.float32]]) -> None:
        """See a microbatch's activations, whole samples; each `TRIAL_EVERY`th is tried.

        Args:
            tokens: Of each modality, float32 (B, N, D).
        """
        if self._num_seen % TRIAL_EVERY == 0:
            for index, codec in enumerate(self.codecs):
                size, error = _tried(codec, [tokens_BND[:MAX_SAMPLES] for tokens_BND in tokens])
                self._sizes[index].append(size)
                self._errors[index].append(error)
        self._num_seen += 1

    def sample_bytes(self, index: int) -> float:
        """Return the bytes that a sample takes under a codec."""
        return float(np.mean(self._sizes[index]))

    def error(self, index: int) -> float:
        """Return the largest relative error of a codec lately: root mean square, against that of the activations."""
        return max(self._errors[index])


def _tried(codec: str, tokens: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """Return bytes a sample, and the largest relative error of a modality: none hides behind a louder one."""
    num_bytes, errors = 0, [0.0]
    try:
        for tokens_BND in tokens:
            data = codec_from_name(codec).encode(tokens_BND)
            decoded_BND = codec_from_name(codec).decode(data, tokens_BND.shape)
            num_bytes += len(data)
            errors.append(_relative_error(tokens_BND, decoded_BND))
    except CodecError:
        return float("inf"), float("inf")  # what cannot carry these activations is no choice
    return num_bytes / len(tokens[0]), max(errors)


def _relative_error(exact: NDArray[np.float32], decoded: NDArray[np.float32]) -> float:
    norm = float(np.linalg.norm(exact.astype(np.float64)))
    gap = float(np.linalg.norm(decoded.astype(np.float64) - exact))
    if not gap:
        return 0.0
    return gap / norm if norm else float("inf")
