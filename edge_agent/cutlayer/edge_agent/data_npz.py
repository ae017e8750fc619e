"""Arrays in one `.npz` file: each modality under its name, targets, and what a table's other columns are.

An array that was saved without compression (`numpy.savez`) is mapped into memory, so that only what is used is read;
one of `numpy.savez_compressed` is decompressed as a whole.

Axes: R rows, C outputs.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import ModalitySpec
from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RetrievalSpec, TaskSpec
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.data_columns import ArrayColumn
from cutlayer.edge_agent.data_npy import BROKEN_ARRAY
from cutlayer.edge_agent.data_readers import array_problem, column_of_arrays
from cutlayer.edge_agent.data_table import Table
from cutlayer.edge_agent.data_targets import LABELS_SEPARATOR, ColumnOf, read_targets

__all__ = ["ArrayFile", "array_column", "num_rows_of_arrays", "targets_of_arrays", "texts_of_array"]

_TARGETS = {"classification": "label", "multi-label": "labels", "regression": "targets"}
_LOCAL_HEADER = struct.Struct("<26xHH")
"""Where a ZIP member's local header has the lengths of its name and its extra field (APPNOTE.TXT, 4.3.7)."""
_BROKEN = (*BROKEN_ARRAY, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


class ArrayFile:
    """An `.npz` file.

    Args:
        path: The file.

    Raises:
        SettingsError: When it is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {
                    info.filename.removesuffix(".npy"): info
                    for info in archive.infolist()
                    if info.filename.endswith(".npy")
                }
        except _BROKEN as error:
            raise self._broken("", error) from error

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its arrays."""
        return tuple(self._members)

    def array(self, name: str) -> NDArray[Any]:
        """Return an array, mapped where that is possible.

        Raises:
            SettingsError: When it is broken, or holds Python objects.
        """
        info = self._members[name]
        try:
            if info.compress_type == zipfile.ZIP_STORED:
                return self._mapped(info)
            with zipfile.ZipFile(self.path) as archive, archive.open(info) as member:
                found: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
                return found
        except _BROKEN as error:
            raise self._broken(f", array {name!r}", error) from error

    def _mapped(self, info: zipfile.ZipInfo) -> NDArray[Any]:
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            len_name, len_extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            file.seek(len_name + len_extra, 1)
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, is_fortran, dtype = read_header[version](file)
            if dtype.hasobject:
                raise ValueError("Python objects; save texts as an array of str")
            if not all(shape):
                return np.zeros(shape, dtype)
            return np.memmap(
                self.path, dtype, mode="r", offset=file.tell(), shape=shape, order="F" if is_fortran else "C"
            )

    def _broken(self, where: str, error: Exception) -> SettingsError:
        if isinstance(error, OSError) and error.strerror:
            return SettingsError(f"{self.path} cannot be read: {error.strerror}", "check the name and your rights")
        return SettingsError(f"{self.path}{where}: {error}", "write it again with numpy.savez")


def array_column(file: ArrayFile, name: str, spec: ModalitySpec, num_rows: int) -> ArrayColumn:
    """Return a modality's array as a column; where there is an array `<name>_present`, it says which rows have it.

    Raises:
        SettingsError: When a shape or type is not what the modality takes.
    """
    values = _checked_length(file, name, file.array(name), num_rows)
    if problem := array_problem(spec, values):
        raise SettingsError(f"{file.path}, array {name!r} is {values.shape} {values.dtype}", problem)
    present: NDArray[np.bool_] | None = None
    if (flags := f"{name}_present") in file.names:
        present = _checked_length(file, flags, file.array(flags), num_rows).astype(bool)
        if present.ndim != 1:
            raise SettingsError(f"{file.path}, array {flags!r} is {present.shape}", "give one value a row")
    return column_of_arrays(values, present, spec)


def texts_of_array(file: ArrayFile, name: str, num_rows: int) -> list[str]:
    """Return an array of one text or whole number a row.

    Raises:
        SettingsError: When it is something else.
    """
    values = _checked_length(file, name, file.array(name), num_rows)
    if values.ndim != 1 or values.dtype.kind not in "Uiu":
        raise SettingsError(
            f"{file.path}, array {name!r} is {values.shape} {values.dtype}", "give one text a row, as an array of str"
        )
    return [str(value) for value in values.tolist()]


def num_rows_of_arrays(file: ArrayFile, names: Sequence[str]) -> int:
    """Return how many rows the first of some arrays has that is there; 0 where none is.

    Raises:
        SettingsError: When it is broken.
    """
    found = next((file.array(name) for name in names if name in file.names), None)
    return len(found) if found is not None and found.ndim else 0


def targets_of_arrays(file: ArrayFile, task: TaskSpec, array_of: ColumnOf) -> Targets:
    """Return the targets of all rows.

    One label: `label`, names or, where the run's classes are numerals, numbers. Several: `labels`, (R, C) of 1, 0 and
    -1 for not known, or names separated by `;`. Numbers: `targets`, (R, C) in the run's order. Pairs: none.

    Raises:
        SettingsError: When the array is missing, or is not that.
    """
    path = file.path
    wanted = task.between[0] if isinstance(task, RetrievalSpec) else _TARGETS[task.kind]
    name = array_of(wanted)
    if name not in file.names:
        raise SettingsError(
            f"{path} has no array {name!r}, and the run learns from it", f"add it, or say --data-option {wanted}=ARRAY"
        )
    values = file.array(name)
    if isinstance(task, RetrievalSpec):
        return np.zeros(len(values) if values.ndim else 0, np.int64)
    if isinstance(task, ClassificationSpec) or (isinstance(task, MultiLabelSpec) and values.dtype.kind == "U"):
        cells = texts_of_array(file, name, len(values) if values.ndim else 0)
        return read_targets(Table(path, {wanted: cells}, path.parent), task, lambda column: column)
    shape = (len(values) if values.ndim else 0, task.num_outputs)
    if values.shape != shape or values.dtype.kind not in "biuf":
        raise SettingsError(
            f"{path}, array {name!r} is {values.shape} {values.dtype}",
            f"give numbers {shape}, a column for each of {', '.join(task.output_names[:8])}",
        )
    targets_RC = np.asarray(values, dtype=np.float32)
    is_allowed = np.isin(targets_RC, (-1, 0, 1)) if isinstance(task, MultiLabelSpec) else ~np.isinf(targets_RC)
    if not is_allowed.all():
        row, column = (int(place) for place in np.argwhere(~is_allowed)[0])
        raise SettingsError(
            f"{path}, array {name!r}, row {row + 1}, column {column + 1}: {targets_RC[row, column]:g}",
            f"write 1, 0, or -1 for not known, or join names with {LABELS_SEPARATOR!r}"
            if isinstance(task, MultiLabelSpec)
            else "write NaN where a number is missing",
        )
    return targets_RC


def _checked_length(file: ArrayFile, name: str, values: NDArray[Any], num_rows: int) -> NDArray[Any]:
    if values.ndim == 0 or len(values) != num_rows:
        raise SettingsError(
            f"{file.path}, array {name!r} has {len(values) if values.ndim else 0} rows for {num_rows} targets",
            "give one row a sample everywhere",
        )
    return values
