"""Opens a user's own data: a table, a tree of folders, arrays. What each kind lacks is said before training begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import AudioSpec, ImageSpec, SeriesSpec
from cutlayer.broker.tasks import RegressionSpec
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.data_columns import Column, FileColumn
from cutlayer.edge_agent.data_npz import (
    ArrayFile,
    array_column,
    num_rows_of_arrays,
    targets_of_arrays,
    texts_of_array,
)
from cutlayer.edge_agent.data_options import OPTION_NAMES, UserDataOptions, user_data_options
from cutlayer.edge_agent.data_readers import cell_names, column_of_table, file_reader, suffixes_of
from cutlayer.edge_agent.data_request import DataRequest
from cutlayer.edge_agent.data_samples import UserDataset
from cutlayer.edge_agent.data_split import hashed_split, named_split
from cutlayer.edge_agent.data_table import TABLE_NAMES, Table, read_header, read_table
from cutlayer.edge_agent.data_targets import ColumnOf, no_targets, read_targets, target_columns
from cutlayer.edge_agent.data_tree import read_files, read_tree
from cutlayer.edge_agent.data_unread import NUM_NAMED, say_unread

__all__ = ["check_user_data", "open_user_data"]

Kind = Literal["table", "tree", "arrays"]


def check_user_data(name: str, options: UserDataOptions) -> None:
    """Check what can be checked before a run is known: the path, the table's header, the columns named by options.

    Raises:
        SettingsError: When something is wrong.
    """
    kind, path = _find(name)
    if kind == "tree":
        _check_columns(path, options, ())
        return
    names = read_header(path) if kind == "table" else ArrayFile(path).names
    _check_columns(path, options, names)


def open_user_data(name: str, request: DataRequest) -> UserDataset:
    """Open a user's data for a run.

    Args:
        name: A table, a folder with one, a folder of classes, or an `.npz` file.
        request: What the run asks for.

    Raises:
        SettingsError: When they cannot be read, or do not fit the run; the text names file, row and column.
    """
    options = user_data_options(request.options)
    kind, path = _find(name)
    if kind == "tree":
        return _open_tree(name, path, request, options)
    if kind == "arrays":
        return _open_arrays(name, path, request, options)
    return _open_table(name, path, request, options)


def _find(name: str) -> tuple[Kind, Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        tables = [path / table for table in TABLE_NAMES if (path / table).is_file()]
        if len(tables) > 1:
            raise SettingsError(f"{path} has both {' and '.join(TABLE_NAMES)}", f"name one: --data {tables[0]}")
        return ("table", tables[0]) if tables else ("tree", path)
    if not path.exists():
        raise SettingsError(f"--data {name}: there is no such file or folder", "check the path")
    kinds: dict[str, Kind] = {".csv": "table", ".parquet": "table", ".npz": "arrays"}
    kind = kinds.get(path.suffix)
    if kind is None:
        raise SettingsError(
            f"--data {name} is a file of an unknown kind", f"give a folder, or a file that ends in {', '.join(kinds)}"
        )
    return kind, path


def _open_table(name: str, path: Path, request: DataRequest, options: UserDataOptions) -> UserDataset:
    names = read_header(path)
    _check_columns(path, options, names)
    _check_keys(request, options)
    column_of = _column_of(options)
    wanted = {
        column_of(column)
        for column in (
            *request.modalities,
            *target_columns(request.task),
            *cell_names(request.modalities),
            "split",
            "id",
        )
    }
    if not any(column_of(name) in names for name in cell_names(request.modalities)):
        raise _has_none(path, cell_names(request.modalities), names, "column")
    table = read_table(path, wanted, options.root)
    columns = _columns_of_table(table, request, options)
    if _needs_targets(request, table.columns, column_of):
        targets = read_targets(table, request.task, column_of)
    else:
        targets = no_targets(request.task, table.num_rows)
    splits = _splits_of(table, request, options, targets)
    texts, groups = _texts_of(table, columns, column_of), _groups_of(table, column_of("id"))
    dataset = UserDataset(name, request, options, columns, targets, splits, texts, groups)
    is_by_cells = not {column_of("split"), column_of("id")} & set(names)
    say_unread(name, request, columns, [column for column in names if column not in wanted], is_by_cells=is_by_cells)
    return dataset


def _columns_of_table(table: Table, request: DataRequest, options: UserDataOptions) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for modality, spec in request.modalities.items():
        column = column_of_table(table, modality, spec, options, _column_of(options))
        if column is not None:
            columns[modality] = column
    return columns


def _open_tree(name: str, path: Path, request: DataRequest, options: UserDataOptions) -> UserDataset:
    _check_columns(path, options, ())
    if request.task.kind != "classification" and request.wants_targets:
        raise SettingsError(
            f"--data {name} is a folder of classes, one a sample, and the run's task is {request.task.kind}",
            f"write a table: {path / TABLE_NAMES[0]}",
        )
    in_files = [modality for modality, spec in sorted(request.modalities.items()) if suffixes_of(spec)]
    chosen = options.modality or (in_files[0] if len(in_files) == 1 else None)
    if chosen is None or chosen not in in_files:
        raise SettingsError(
            f"--data {name} is a folder of classes; the run's modalities in files are {', '.join(in_files) or 'none'}",
            "say which of them it holds (--data-option modality=NAME), "
            f"or write a table with a column for each: {path / TABLE_NAMES[0]}",
        )
    spec = request.modalities[chosen]
    assert isinstance(spec, ImageSpec | AudioSpec | SeriesSpec), "it comes in files"
    reader = file_reader(spec, options)
    if not request.wants_targets and request.rows == "all":
        table = read_files(path, suffixes_of(spec), chosen)
        targets = no_targets(request.task, table.num_rows)
    else:
        table = read_tree(path, request.task.output_names, suffixes_of(spec), chosen)
        targets = read_targets(table, request.task, lambda column: column)
    columns = {chosen: FileColumn(table, chosen, reader)}
    splits = _splits_of(table, request, options, targets)
    return UserDataset(name, request, options, columns, targets, splits, {"file": table.columns[chosen]})


def _open_arrays(name: str, path: Path, request: DataRequest, options: UserDataOptions) -> UserDataset:
    file = ArrayFile(path)
    _check_columns(path, options, file.names)
    _check_keys(request, options)
    array_of = _column_of(options)
    if _needs_targets(request, file.names, array_of):
        targets = targets_of_arrays(file, request.task, array_of)
    else:
        targets = no_targets(request.task, num_rows_of_arrays(file, [array_of(name) for name in request.modalities]))
    columns: dict[str, Column] = {}
    for modality, spec in request.modalities.items():
        if array_of(modality) in file.names:
            columns[modality] = array_column(file, array_of(modality), spec, len(targets))
    if not columns:
        raise _has_none(path, request.modalities, file.names, "array")
    if array_of("split") in file.names:
        cells = {array_of("split"): texts_of_array(file, array_of("split"), len(targets))}
    else:
        cells = {"row": [str(row) for row in range(len(targets))]}
    splits = _splits_of(Table(path, cells, path.parent), request, options, targets)
    texts = {"id": texts_of_array(file, array_of("id"), len(targets))} if array_of("id") in file.names else {}
    dataset = UserDataset(name, request, options, columns, targets, splits, texts)
    known = {array_of(key) for key in (*request.modalities, *target_columns(request.task), "targets", "split", "id")}
    unread = [array for array in file.names if array.removesuffix("_present") not in known]
    say_unread(name, request, columns, unread)
    return dataset


def _needs_targets(request: DataRequest, names: Collection[str], column_of: ColumnOf) -> bool:
    """Return whether targets are read: they are of use, or decide which rows are for testing."""
    is_divided = request.rows != "all" and column_of("split") not in names
    return request.wants_targets or is_divided


def _texts_of(table: Table, columns: Mapping[str, Column], column_of: ColumnOf) -> dict[str, Sequence[str]]:
    """Return what names rows besides their numbers: the column `id`; without one, their files."""
    if column_of("id") in table.columns:
        return {"id": table.columns[column_of("id")]}
    in_files = [modality for modality, column in columns.items() if isinstance(column, FileColumn)]
    return {f"{modality} file": table.columns[column_of(modality)] for modality in in_files}


def _splits_of(table: Table, request: DataRequest, options: UserDataOptions, targets: Targets) -> NDArray[np.str_]:
    column_of = _column_of(options)
    if request.rows == "all":
        return np.full(len(targets), "test", dtype=np.str_)
    if column_of("split") in table.columns:
        return named_split(table, column_of("split"))
    if column_of("id") in table.columns:
        identities = list(table.columns[column_of("id")])
    else:
        # Without what is to be learned: a label that is mended moves no row.
        apart = {column_of(name) for name in target_columns(request.task)}
        cells = [column for name, column in sorted(table.columns.items()) if name not in apart]
        # Rows that only look alike (few columns, few values) are told apart: else all of them would go one way.
        alike: Counter[str] = Counter()
        identities = []
        for row in zip(*cells, strict=True):
            text = "\0".join(row)
            identities.append(f"{text}\0{alike[text]}")
            alike[text] += 1
    is_number = isinstance(request.task, RegressionSpec)
    strata = ["" if is_number else str(target.tolist()) for target in targets]
    return hashed_split(identities, strata, test_share=options.test_share, seed=options.split_seed)


def _groups_of(table: Table, column: str) -> NDArray[np.int64] | None:
    """Return which rows belong together by the column `id`, int64 (R); None without one."""
    if column not in table.columns:
        return None
    return np.unique(np.array(table.columns[column], dtype=np.str_), return_inverse=True)[1].astype(np.int64)


def _column_of(options: UserDataOptions) -> ColumnOf:
    return lambda name: options.columns.get(name, name)


def _check_columns(path: Path, options: UserDataOptions, names: Collection[str]) -> None:
    for key, column in options.columns.items():
        if column not in names:
            raise SettingsError(
                f"--data-option {key}={column}: {path} has no {column!r}"
                + (f", it has {', '.join(names)}" if names else ", nor any column"),
                f"name one of them, or use one of the options {', '.join(OPTION_NAMES)}",
            )


def _check_keys(request: DataRequest, options: UserDataOptions) -> None:
    """Check that each column is named for something that the run has: a slip would leave a modality out in silence."""
    names = {
        *request.modalities,
        *target_columns(request.task),
        *cell_names(request.modalities),
        "targets",
        "split",
        "id",
    }
    for key, column in options.columns.items():
        if key not in names:
            raise SettingsError(
                f"--data-option {key}={column}: the run has nothing that is called {key!r}",
                f"its modalities are {', '.join(sorted(request.modalities))}; docs/data.md lists the other options",
            )


def _has_none(
    path: Path, wanted: Collection[str], names: Sequence[str], kind: Literal["column", "array"]
) -> SettingsError:
    return SettingsError(
        f"{path} has none of the run's {kind}s {', '.join(sorted(wanted)[:NUM_NAMED])}; it has {', '.join(names)}",
        f"say which of these is which: --data-option {min(wanted)}={kind.upper()}",
    )
