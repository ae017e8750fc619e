"""Images in files, decoded by Pillow when they are asked for, and brought to the shape that a run asks for.

Axes: H rows, W columns, C channels.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import ImageSpec
from cutlayer.edge_agent.data_npy import map_array
from cutlayer.edge_agent.data_options import Fit
from cutlayer.edge_agent.data_table import needs_package
from cutlayer.edge_agent.data_unreadable import Unreadable

__all__ = ["IMAGE_SUFFIXES", "ImageReader"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".npy")
"""Files that count as images in a folder of classes."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")
_16_BITS = 65_535.0
# What Pillow's decoders raise on damaged files of one format or another.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, struct.error, zlib.error)


class ImageReader:
    """Reads the images of one modality.

    Turned as their EXIF data say, converted to the run's number of channels (palettes and transparency resolved by
    Pillow, 16-bit grey kept at its precision), scaled by a bicubic filter that averages when it makes smaller. An
    array (`.npy`) has to have the run's shape already: (H, W, C), uint8, or float from 0 to 1.

    Args:
        spec: The modality.
        fit: How another shape is brought to the run's.

    Raises:
        SettingsError: When Pillow is not installed.
    """

    def __init__(self, spec: ImageSpec, fit: Fit) -> None:
        needs_package("PIL", "reading images")
        self.spec = spec
        self.fit = fit
        self.shape = (spec.height, spec.width, spec.channels)

    def check(self, path: Path) -> None:
        """Read a file's header.

        Raises:
            Unreadable: When that fails.
        """
        from PIL import Image, UnidentifiedImageError

        if path.suffix.lower() == ".npy":
            map_array(path, self.shape)
            return
        self._mode()
        try:
            with Image.open(path):
                pass
        except UnidentifiedImageError as error:
            raise Unreadable("no image that Pillow knows") from error
        except (*_BROKEN, Image.DecompressionBombError) as error:
            raise Unreadable.of(error) from error

    def read(self, path: Path) -> NDArray[Any]:
        """Decode a file.

        Returns:
            pixels_HWC: uint8, or float32 from 0 to 1 for files of more than 8 bits.

        Raises:
            Unreadable: When it cannot be decoded.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        if path.suffix.lower() == ".npy":
            return np.array(map_array(path, self.shape))
        mode = self._mode()
        try:
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file)
            if image.mode not in _DEEP_MODES:
                image = image.convert(mode)
        except UnidentifiedImageError as error:
            raise Unreadable("no image that Pillow knows") from error
        except (*_BROKEN, Image.DecompressionBombError) as error:
            raise Unreadable.of(error) from error
        if image.mode in _DEEP_MODES:
            return self._deep(image)
        pixels = np.asarray(self._fitted(image), dtype=np.uint8)
        return pixels.reshape(self.shape)

    def _deep(self, image: Any) -> NDArray[np.float32]:
        """Return an image of more than 8 bits, as many equal channels as asked for, from 0 to 1."""
        from PIL import Image

        values_HW = np.asarray(image).astype(np.float32)
        if image.mode != "F":
            values_HW /= np.float32(_16_BITS)
        if not (values_HW.size and values_HW.min() >= 0.0 and values_HW.max() <= 1.0):
            raise Unreadable(f"values of mode {image.mode} outside 0 to {'1' if image.mode == 'F' else '65,535'}")
        fitted_HW = np.asarray(self._fitted(Image.fromarray(values_HW)), dtype=np.float32)
        # The filter overshoots at edges.
        return np.repeat(np.clip(fitted_HW, 0.0, 1.0)[:, :, None], self.spec.channels, axis=2)

    def _fitted(self, image: Any) -> Any:
        from PIL import Image, ImageOps

        size = (self.spec.width, self.spec.height)
        if image.size == size:
            return image
        if self.fit == "stretch":
            return image.resize(size, Image.Resampling.BICUBIC)
        method = ImageOps.fit if self.fit == "crop" else ImageOps.pad
        return method(image, size, method=Image.Resampling.BICUBIC)

    def _mode(self) -> str:
        """Return what Pillow calls the run's number of channels."""
        mode = _MODES.get(self.spec.channels)
        if mode is None:
            raise SettingsError(
                f"the run's images have {self.spec.channels} channels, and image files give 1, 3 or 4",
                f"store each image as an array {self.shape} in a .npy file",
            )
        return mode
