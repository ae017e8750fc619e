"""Who reads which kind of modality: its files, its cells, its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import AudioSpec, ImageSpec, ModalitySpec
from cutlayer.edge_agent.data_columns import FileReader
from cutlayer.edge_agent.data_images import IMAGE_SUFFIXES, ImageReader
from cutlayer.edge_agent.data_options import UserDataOptions
from cutlayer.edge_agent.data_sounds import SOUND_SUFFIXES, SoundReader

__all__ = ["array_problem", "cell_names", "file_reader", "suffixes_of"]

_SUFFIXES: Mapping[str, tuple[str, ...]] = {"image": IMAGE_SUFFIXES, "audio": SOUND_SUFFIXES}


def suffixes_of(spec: ModalitySpec) -> tuple[str, ...]:
    """Return the endings of files that hold a modality; none where it does not come in files."""
    return _SUFFIXES.get(spec.kind, ())


def file_reader(spec: ModalitySpec, options: UserDataOptions) -> FileReader | None:
    """Return what reads a modality's files; None where it does not come in files.

    Raises:
        SettingsError: When a package is missing.
    """
    if isinstance(spec, ImageSpec):
        return ImageReader(spec, options.fit)
    if isinstance(spec, AudioSpec):
        return SoundReader(spec)
    return None


def array_problem(spec: ModalitySpec, values: NDArray[Any]) -> str | None:
    """Return what an array of raw samples, first axis R, should be; None where it is that."""
    if isinstance(spec, ImageSpec):
        shape = (spec.height, spec.width, spec.channels)
        fits = values.shape[1:] == shape and (values.dtype == np.uint8 or values.dtype.kind == "f")
        return None if fits else f"give (rows, {', '.join(map(str, shape))}) uint8, or float from 0 to 1"
    if isinstance(spec, AudioSpec):
        fits = values.ndim == 2 and values.dtype.kind == "f"
        return None if fits else f"give (rows, samples) float from -1 to 1, mono at {spec.sample_rate_hz} Hz"
    return None


def cell_names(modalities: Mapping[str, ModalitySpec]) -> tuple[str, ...]:
    """Return the names under which a table has the values of modalities that are in cells of their own."""
    del modalities
    return ()
