"""Who reads which kind of modality: from files, from cells, from arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import AudioSpec, ImageSpec, ModalitySpec, SeriesSpec, TableSpec
from cutlayer.edge_agent.data_cells import row_column, text_column
from cutlayer.edge_agent.data_columns import ArrayColumn, Column, FileColumn, FileReader
from cutlayer.edge_agent.data_images import IMAGE_SUFFIXES, ImageReader
from cutlayer.edge_agent.data_options import UserDataOptions
from cutlayer.edge_agent.data_series import SERIES_SUFFIXES, SeriesReader
from cutlayer.edge_agent.data_sounds import SOUND_SUFFIXES, SoundReader
from cutlayer.edge_agent.data_table import Table
from cutlayer.edge_agent.data_targets import ColumnOf

__all__ = ["array_problem", "cell_names", "column_of_arrays", "column_of_table", "file_reader", "suffixes_of"]

_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "image": IMAGE_SUFFIXES,
    "audio": SOUND_SUFFIXES,
    "series": SERIES_SUFFIXES,
}
_ROWS_AT_ONCE = 1_024


def suffixes_of(spec: ModalitySpec) -> tuple[str, ...]:
    """Return the endings of files that hold a modality; none where it does not come in files."""
    return _SUFFIXES.get(spec.kind, ())


def file_reader(spec: ImageSpec | AudioSpec | SeriesSpec, options: UserDataOptions) -> FileReader:
    """Return what reads a modality's files.

    Raises:
        SettingsError: When a package is missing.
    """
    if isinstance(spec, ImageSpec):
        return ImageReader(spec, options.fit)
    return SoundReader(spec) if isinstance(spec, AudioSpec) else SeriesReader(spec)


def cell_names(modalities: Mapping[str, ModalitySpec]) -> tuple[str, ...]:
    """Return the names under which a table has modalities: their own, and of tables their columns' instead."""
    names: list[str] = []
    for modality, spec in modalities.items():
        names += spec.column_names if isinstance(spec, TableSpec) else [modality]
    return tuple(names)


def column_of_table(
    table: Table, modality: str, spec: ModalitySpec, options: UserDataOptions, column_of: ColumnOf
) -> Column | None:
    """Return a modality from the columns of a table; None where it has no column for it.

    Raises:
        SettingsError: When a cell is not what the modality takes, or a package is missing.
    """
    if isinstance(spec, TableSpec):
        return row_column(table, modality, spec, column_of)
    column = column_of(modality)
    if column not in table.columns:
        return None
    if isinstance(spec, ImageSpec | AudioSpec | SeriesSpec):
        return FileColumn(table, column, file_reader(spec, options))
    return text_column(table, column)


def column_of_arrays(values: NDArray[Any], present: NDArray[np.bool_] | None, spec: ModalitySpec) -> ArrayColumn:
    """Return a modality from an array, first axis R, that fits it; without `present`, as its values say."""
    if present is not None:
        return ArrayColumn(values, present)
    if values.dtype.kind == "U":
        return ArrayColumn(values, values != "")
    has = np.ones(len(values), bool)
    if values.dtype.kind == "f" and isinstance(spec, SeriesSpec | TableSpec):
        for start in range(0, len(values), _ROWS_AT_ONCE):
            part = values[start : start + _ROWS_AT_ONCE]
            part = part[:, : spec.num_steps] if isinstance(spec, SeriesSpec) else part
            has[start : start + len(part)] = ~np.isnan(part).reshape(len(part), -1).all(axis=1)
    return ArrayColumn(values, has)


def array_problem(spec: ModalitySpec, values: NDArray[Any]) -> str | None:
    """Return what an array of raw samples, first axis R, should be; None where it is that."""
    kind, shape = values.dtype.kind, values.shape[1:]
    if isinstance(spec, ImageSpec):
        wanted = (spec.height, spec.width, spec.channels)
        fits = shape == wanted and (values.dtype == np.uint8 or kind == "f")
        return None if fits else f"give (rows, {', '.join(map(str, wanted))}) uint8, or float from 0 to 1"
    if isinstance(spec, AudioSpec):
        fits = len(shape) == 1 and kind == "f"
        return None if fits else f"give (rows, samples) float from -1 to 1, mono at {spec.sample_rate_hz} Hz"
    if isinstance(spec, SeriesSpec):
        fits = len(shape) == 2 and shape[1] == spec.channels and kind in "iuf"
        return None if fits else f"give (rows, steps, {spec.channels}) numbers at {spec.rate_hz:g} Hz, NaN for missing"
    if isinstance(spec, TableSpec):
        fits = shape == (spec.num_tokens,) and kind in "iuf"
        return None if fits else f"give (rows, {spec.num_tokens}) numbers: {', '.join(spec.column_names[:12])}"
    return None if shape == () and kind == "U" else "give one text a row, as an array of str"
