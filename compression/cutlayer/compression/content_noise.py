"""Random numbers that follow from a tensor's own bytes: the same tensor gets the same ones on every machine.

So an encoder that rounds at random is still a function of its input: tests can hold it to golden bytes, and a
message that is encoded again is the same message. Two tensors that differ in one bit get unrelated numbers.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_DRAWS_PER_WORD = 4


class ContentNoise:
    """Uniform numbers from 0 to 1, in steps of 2^-16.

    The seed is the first 128 bits of SHA-256 of the elements as little-endian binary32 in C order; the generator
    is PCG64, whose stream NumPy promises to keep (NEP 19).

    Args:
        array: C-contiguous; whatever is being encoded.
    """

    def __init__(self, array: NDArray[np.float32]) -> None:
        elements = np.ascontiguousarray(array, "<f4").reshape(-1)
        digest = hashlib.sha256(elements.view(np.uint8).data).digest()
        self._generator = np.random.PCG64(int.from_bytes(digest[:16], "little"))

    def draw(self, count: int) -> NDArray[np.float32]:
        """Give the next numbers.

        Args:
            count: How many.

        Returns:
            Odd multiples of 2^-17, so that their mean is one half, not less.
        """
        words = self._generator.random_raw(-(-count // _DRAWS_PER_WORD))
        draws = words.astype("<u8", copy=False).view("<u2")[:count].astype(np.float32)
        draws *= np.float32(2.0**-16)
        draws += np.float32(2.0**-17)
        return draws
