"""A user's samples: rows of a table, a tree of folders or arrays, divided, checked, and read when they are asked for.

A step's samples are fixed by their numbers (`epochs.py`), for every process that ever runs as this agent. So numbers
are given once, at opening, from the table and from a look at every file of this agent: what is unreadable then counts
as an empty cell, and a sample without any modality, or without any target, gets no number. A file may pass that look
and fail when it is decoded. Then, again, its cell counts as empty; and where that was the sample's only modality, the
number stands from then on for the next sample that can be read, counted round the split. Both follow from the files
alone, so that a process which is started again finds the same. A file that could be read before and cannot any more is
another matter: a disk is gone, and the agent ends rather than send something else under a number that it has used.

Axes: B samples of a batch, R rows of the whole data set, S rows of this agent's split.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import ModalitySpec
from cutlayer.broker.tasks import ClassificationSpec, RetrievalSpec
from cutlayer.edge_agent.batches import SPLITS, Batch, Split, Targets
from cutlayer.edge_agent.data_columns import Column
from cutlayer.edge_agent.data_options import UserDataOptions
from cutlayer.edge_agent.data_progress import with_progress
from cutlayer.edge_agent.data_request import DataRequest
from cutlayer.edge_agent.data_targets import has_target
from cutlayer.edge_agent.data_unreadable import Unreadable, UnreadableFiles
from cutlayer.edge_agent.partition import partition
from cutlayer.edge_agent.row_names import RowNames

__all__ = ["UserDataset"]

log = logging.getLogger(__name__)

_ALL_SPLITS: tuple[Split, ...] = (*SPLITS, "val")


class UserDataset:
    """One agent's part of a user's own data.

    Args:
        name: What the user calls them: what she gave as `--data`.
        request: What the run asks for, and which shard this is.
        options: How to read.
        columns: Each modality of all rows, by its name.
        targets: Of all rows, in the form of `batches.Batch`.
        splits: `train`, `val` or `test` for each row, str (R).
        texts: What names a row besides its number: `id`, or where its files are.
        groups: What each row is of (a patient), int64 (R): rows of one go the same way. None for each its own.

    Raises:
        SettingsError: When no row is for training, or too many files cannot be read.
    """

    def __init__(
        self,
        name: str,
        request: DataRequest,
        options: UserDataOptions,
        columns: Mapping[str, Column],
        targets: Targets,
        splits: NDArray[np.str_],
        texts: Mapping[str, Sequence[str]] | None = None,
        groups: NDArray[np.int64] | None = None,
    ) -> None:
        self._texts = dict(texts or {})
        self._name = name
        self._groups = np.arange(len(targets)) if groups is None else groups
        self._request = request
        self._columns = dict(sorted(columns.items()))
        self._targets = targets
        self._has = {modality: column.has.copy() for modality, column in self._columns.items()}
        self._was_read = {modality: np.zeros(len(targets), bool) for modality in self._columns}
        if isinstance(request.task, RetrievalSpec):
            _check_pair(name, request.task, self._columns)
        self._stand_ins: dict[tuple[Split, int], int] = {}
        self._rows = _divide(request, options, targets, splits)
        own_rows = np.sort(np.concatenate([self._rows[split] for split in _ALL_SPLITS]))
        self.unreadable = UnreadableFiles(self._num_files(own_rows), options.max_unreadable)
        self._look_at_files(own_rows, is_full=options.check == "full")
        self.num_skipped = self.num_without_target = 0
        has_target_R = has_target(request.task, targets)
        # A visit keeps all its rows: what becomes of each is said.
        for split in _ALL_SPLITS if request.rows is None else ():
            rows_S = self._rows[split]
            are_samples_S = self._are_samples(rows_S)
            self.num_skipped += int((~are_samples_S).sum())
            self.num_without_target += int((are_samples_S & ~has_target_R[rows_S]).sum())
            self._rows[split] = rows_S[are_samples_S & has_target_R[rows_S]]
        if request.rows is None and self._rows["train"].size == 0:
            raise SettingsError(
                f"{name}: no row for training is left in shard {request.shard} of {len(targets)} rows",
                "give rows with the split `train`, with a modality of the run and with a target",
            )
        if request.rows is None:
            log.info("%s", self._summary(splits))
        else:
            log.info("%s: %d rows", name, self._rows["test"].size)

    @property
    def row_names(self) -> RowNames:
        """What the rows of a visit are called, by the numbers of its samples."""
        rows_S = self._rows["test"]
        return RowNames(rows_S + 1, {name: [texts[row] for row in rows_S] for name, texts in self._texts.items()})

    @property
    def name(self) -> str:
        """What the user calls them."""
        return self._name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what is learned: the run's, which the table was checked against."""
        return self._request.task.output_names

    @property
    def modalities(self) -> Mapping[str, ModalitySpec]:
        """The run's specification of each modality that some row may have."""
        return {modality: self._request.modalities[modality] for modality in self._columns}

    @property
    def num_val(self) -> int:
        """How many rows are for validation: none unless the run asks for it, or where they are all there is to test."""
        return self._rows["val"].size

    def train_groups(self) -> NDArray[np.int64]:
        """Return what each training sample is of, int64 (S): those of one group go the same way."""
        return self._groups[self._rows["train"]]

    def num_samples(self, split: Split) -> int:
        """Return how many samples of `split` this agent has."""
        return self._rows[split].size

    def batch(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Read samples from their files.

        Args:
            split: `train`, `val` or `test`.
            indices: Sample numbers within this agent's split, int64 (B), from 0.

        Raises:
            IndexError: When an index is outside the split.
            SettingsError: When too many files cannot be read, or one not any more.
        """
        num_samples = self.num_samples(split)
        if indices.size and not 0 <= indices.min() <= indices.max() < num_samples:
            raise IndexError(f"{split} has {num_samples} samples, asked for {indices.min()} to {indices.max()}")
        found = [self._sample(split, int(index)) for index in indices]
        inputs: dict[str, NDArray[Any]] = {}
        present: dict[str, NDArray[np.bool_]] = {}
        for modality, column in self._columns.items():
            values = [raw.get(modality, column.empty) for _, raw in found]
            inputs[modality] = _stacked(values, column.empty)
            has_B = np.array([modality in raw for _, raw in found], dtype=bool)
            if not has_B.all():
                present[modality] = has_B
        rows_B = np.array([row for row, _ in found], dtype=np.int64)
        return Batch(inputs, self._targets[rows_B], present)

    def _sample(self, split: Split, index: int) -> tuple[int, dict[str, NDArray[Any]]]:
        """Return a number's row, and what there is of it."""
        rows_S = self._rows[split]
        if self._request.rows is not None:  # nothing stands in for what cannot be read: the row would get its answer
            return int(rows_S[index]), self._read_row(int(rows_S[index]))
        first = self._stand_ins.get((split, index), index)
        for step in range(rows_S.size):
            number = (first + step) % rows_S.size
            row = int(rows_S[number])
            raw = self._read_row(row)
            if self._is_sample(set(raw)):
                if number != index:
                    self._stand_ins[split, index] = number
                return row, raw
        raise SettingsError(f"{self._name}: no sample for {split} can be read any more", "see to the files' disk")

    def _read_row(self, row: int) -> dict[str, NDArray[Any]]:
        raw = {}
        for modality, column in self._columns.items():
            if not self._has[modality][row]:
                continue
            try:
                raw[modality] = column.read(row)
            except Unreadable as error:
                self._lose(modality, row, error)
            else:
                self._was_read[modality][row] = True
        return raw

    def _lose(self, modality: str, row: int, error: Unreadable) -> None:
        path = self._columns[modality].path(row)
        assert path is not None, "what is in memory can be read"
        if self._was_read[modality][row]:
            raise SettingsError(
                f"{path} was read before and cannot be read any more: {error.reason}",
                "see to its disk, then start the agent again: it goes on where the run stands",
            ) from error
        self._has[modality][row] = False
        self.unreadable.add(path, error.reason)
        self.unreadable.check()

    def _num_files(self, rows: NDArray[np.int64]) -> int:
        num_files = 0
        for modality, column in self._columns.items():
            having = rows[self._has[modality][rows]]
            if having.size and column.path(int(having[0])) is not None:
                num_files += having.size
        return num_files

    def _look_at_files(self, rows: NDArray[np.int64], *, is_full: bool) -> None:
        for modality, column in self._columns.items():
            having = rows[self._has[modality][rows]]
            reasons = column.check(having, is_full=is_full)
            for row, reason in zip(
                having.tolist(), with_progress(reasons, having.size, f"{modality} files"), strict=True
            ):
                path = column.path(row)
                if reason is not None and path is not None:
                    self._has[modality][row] = False
                    self.unreadable.add(path, reason)
        self.unreadable.check()

    def _is_sample(self, modalities: Collection[str]) -> bool:
        """Return whether a row with these modalities has something to learn from: one of them, or of a pair both."""
        task = self._request.task
        return set(task.between) <= set(modalities) if isinstance(task, RetrievalSpec) else bool(modalities)

    def _are_samples(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The same for many rows, bool (S)."""
        task = self._request.task
        if isinstance(task, RetrievalSpec):
            first, second = (self._has[modality][rows] for modality in task.between)
            return first & second
        has_any_S = np.zeros(rows.size, np.bool_)
        for has_R in self._has.values():
            has_any_S |= has_R[rows]
        return has_any_S

    def _summary(self, splits: NDArray[np.str_]) -> str:
        train, test = (self._rows[split] for split in SPLITS)
        parts = [f"{self._name}: {train.size} samples for training, {test.size} for testing"]
        for modality, has_R in self._has.items():
            rows = np.concatenate([train, test])
            if lacking := int((~has_R[rows]).sum()):
                parts.append(f"{lacking} lack {modality}")
        if self.num_skipped:
            is_pair = isinstance(self._request.task, RetrievalSpec)
            what = "one half of the pair" if is_pair else "a modality to learn from"
            parts.append(f"{self.num_skipped} rows without {what} skipped")
        if self.num_without_target:
            parts.append(f"{self.num_without_target} rows without a target skipped")
        if self.unreadable.reasons:
            parts.append(f"{len(self.unreadable.reasons)} of {self.unreadable.num_files} files unreadable")
        if self.num_val:
            parts.append(f"{self.num_val} for validation")
        elif num_val := int((splits == "val").sum()) if (splits == "test").any() else 0:
            parts.append(f"{num_val} rows for validation not used")
        return ", ".join(parts)


def _check_pair(name: str, task: RetrievalSpec, columns: Mapping[str, Column]) -> None:
    for modality in task.between:
        if modality not in columns:
            raise SettingsError(
                f"{name} has no {modality}, and the run matches {' and '.join(task.between)}",
                f"add it, or say where it is: --data-option {modality}=NAME",
            )


def _divide(
    request: DataRequest, options: UserDataOptions, targets: Targets, splits: NDArray[np.str_]
) -> dict[Split, NDArray[np.int64]]:
    """Return this agent's rows of each split: by the table alone, so that shards agree whatever they can read."""
    shard = request.shard
    if request.rows is not None:
        return _visited_rows(request, splits)
    names: dict[Split, str] = {"train": "train", "test": "test", "val": "val" if request.validates else ""}
    if not (splits == "test").any():
        names |= {"test": "val", "val": ""}
    is_classification = isinstance(request.task, ClassificationSpec)
    if options.alpha is not None and not is_classification:
        raise SettingsError(
            f"--data-option alpha={options.alpha} divides by class, and the run's task is {request.task.kind}",
            "leave it out: shards are then alike",
        )
    rows: dict[Split, NDArray[np.int64]] = {}
    for split, name in names.items():
        rows_R = np.flatnonzero(splits == name).astype(np.int64)
        if split == "train" and rows_R.size == 0:
            raise SettingsError("no row is for training", "write `train` into the column `split` of some rows")
        if split != "train" and rows_R.size < shard.count:
            rows[split] = rows_R[shard.index :: shard.count]
            continue
        labels = targets[rows_R].astype(np.int64) if is_classification else np.zeros(rows_R.size, np.int64)
        alpha = options.alpha if split == "train" else None
        rows[split] = rows_R[partition(labels, shard.count, seed=request.seed, alpha=alpha)[shard.index]]
    return rows


def _visited_rows(request: DataRequest, splits: NDArray[np.str_]) -> dict[Split, NDArray[np.int64]]:
    """Return the rows of a visit, all of them as if for testing; a shard has every so many of them."""
    wanted = request.rows
    if wanted == "all":
        chosen_R = np.ones(splits.size, np.bool_)
    else:
        has_test = bool((splits == "test").any())
        chosen_R = splits == ("val" if wanted == "test" and not has_test else wanted)
    rows_S = np.flatnonzero(chosen_R).astype(np.int64)[request.shard.index :: request.shard.count]
    if rows_S.size == 0:
        raise SettingsError(f"no row is for {wanted!r} in shard {request.shard}", "choose other rows: --split all")
    return {"train": rows_S[:0], "val": rows_S[:0], "test": rows_S}


def _stacked(values: list[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    """Put samples into one array; images of 8 bits and of more are given as numbers from 0 to 1 together."""
    dtypes = {value.dtype for value in values if value is not empty}
    if dtypes == {np.dtype(np.uint8), np.dtype(np.float32)}:
        values = [value.astype(np.float32) / np.float32(255) if value.dtype == np.uint8 else value for value in values]
    elif dtypes:
        values = [value.astype(next(iter(dtypes)), copy=False) if value is empty else value for value in values]
    return np.stack(values) if values else np.zeros((0, *empty.shape), empty.dtype)
