"""The predictions of a trained model for a site's own samples, row by row into a file that stays at the site.

Axes: S samples of the visit, B samples of a microbatch, C outputs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.actions import OutputsReceived
from cutlayer.broker.errors import SettingsError
from cutlayer.broker.messages import Mode
from cutlayer.broker.tasks import RetrievalSpec, TaskSpec
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.enrolment import Enrolled
from cutlayer.edge_agent.prediction_file import PredictionFile
from cutlayer.edge_agent.predictions import Cell, Column, best_matches, prediction_columns, predictions
from cutlayer.edge_agent.row_names import RowNames
from cutlayer.edge_agent.visit import PATIENCE_S, Visit
from cutlayer.edge_agent.work_items import WorkItem

__all__ = ["NUM_MATCHES", "PredictionVisit"]

NUM_MATCHES = 5
"""Of each row, in each direction."""


class PredictionVisit(Visit):
    """Predictions for all samples, in the order of the data.

    Outputs come in any order: a row is written when all rows before it are. A row that has nothing of the run's
    modalities, or cannot be read, is there with empty cells, so that the file has as many rows as the data.

    Args:
        path: The file.
        num_matches: Of retrieval, matches of each row in each direction.
        patience_s: How long a worker is waited for.
        clock: Seconds, monotonic.

    Attributes:
        names: What each sample's row is called, once the data are open.
        num_empty: Rows without a prediction.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_matches: int = NUM_MATCHES,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(Mode.PREDICT, patience_s=patience_s, clock=clock)
        self.names: RowNames | None = None
        self.num_empty = 0
        self._path = path
        self._num_matches = num_matches
        self._task: TaskSpec | None = None
        self._client: ClientSide | None = None
        self._file: PredictionFile | None = None
        self._is_retrieval = False
        self._next = 0
        self._waiting: dict[int, Sequence[Cell] | None] = {}
        self._embeddings: dict[int, NDArray[np.float32]] = {}

    def finish(self) -> Path:
        """Write what is left, and give the file its name.

        Raises:
            SettingsError: When the disk is full.
        """
        assert self._file is not None, "it is complete"
        assert self.is_complete, "a file of fewer rows than the data would pass for all of them"
        if self._is_retrieval:
            self._write_matches(self._file)
        return self._file.finish()

    def discard(self) -> None:
        """Remove what is written of a visit that did not come to its end."""
        if self._file is not None:
            self._file.discard()

    def _start(self, enrolled: Enrolled) -> list[tuple[str, ...]]:
        self.discard()
        task = self._task = enrolled.manifest.task
        self._client = enrolled.client
        names = self.names = self.names or RowNames(np.arange(1, enrolled.plan.num_test + 1), {})
        self._is_retrieval = isinstance(task, RetrievalSpec)
        columns = [Column("row", "whole"), *(Column(name, "text") for name in names.texts)]
        if isinstance(task, RetrievalSpec):
            if self._num_matches < 1:
                raise SettingsError(f"--matches {self._num_matches}", "choose 1 or more")
            found = [Column(f"found {column.name}", column.kind) for column in columns]
            ways = [Column("given", "text"), Column("searched", "text"), Column("rank", "whole")]
            columns += [*ways, *found, Column("similarity", "number")]
        else:
            columns += prediction_columns(task)
        _check_differ(columns)
        self._num_cells = len(columns) - 1 - len(names.texts)
        self._file = PredictionFile(self._path, columns)
        self._next, self.num_empty = 0, 0
        self._waiting.clear()
        self._embeddings.clear()
        return [enrolled.client.modalities]

    def _take(self, item: WorkItem, received: OutputsReceived, targets: Targets) -> None:
        assert self._client is not None, "it has begun"
        assert self._task is not None, "it has begun"
        outputs_BC = self._client.outputs(received.outputs, len(targets), received.codecs.outputs)
        if self._is_retrieval:
            self._embeddings |= dict(zip(item.indices.tolist(), outputs_BC, strict=True))
            return
        cells = predictions(self._task, outputs_BC)
        self._place(dict(zip(item.indices.tolist(), cells, strict=True)))

    def _leave_out(self, given: tuple[str, ...], indices_b: NDArray[np.int64]) -> None:
        del given  # it is all that the site has
        self.num_empty += indices_b.size
        if not self._is_retrieval:
            self._place(dict.fromkeys(indices_b.tolist()))

    def _place(self, cells: Mapping[int, Sequence[Cell] | None]) -> None:
        """Write all rows that have no gap before them any more."""
        assert self._file is not None, "it has begun"
        assert self.names is not None, "it has begun"
        self._waiting |= cells
        rows: list[list[Cell]] = []
        while self._next in self._waiting:
            found = self._waiting.pop(self._next)
            empty: list[Cell] = [None] * self._num_cells
            rows.append([*self.names.of(self._next), *(empty if found is None else found)])
            self._next += 1
        self._file.write(rows)

    def _write_matches(self, file: PredictionFile) -> None:
        """Write the best matches of each row in both directions; of rows that lack one modality, one direction."""
        assert isinstance(self._task, RetrievalSpec), "only it has matches"
        assert self.names is not None, "it has begun"
        samples = sorted(self._embeddings)
        both_SC = np.array([self._embeddings[sample] for sample in samples])
        first_SE, second_SE = np.split(both_SC.reshape(len(samples), self._task.num_outputs), 2, axis=1)
        first, second = self._task.between
        for given, searched, query_SE, item_SE in (
            (first, second, first_SE, second_SE),
            (second, first, second_SE, first_SE),
        ):
            # What a sample lacks has an embedding of zeros, and all else a length.
            asks_S, answers_S = (query_SE != 0).any(axis=1), (item_SE != 0).any(axis=1)
            queries, items = (list(itertools.compress(samples, has_S)) for has_S in (asks_S, answers_S))
            for match in best_matches(query_SE[asks_S], item_SE[answers_S], queries, items, self._num_matches):
                names, found = self.names.of(match.sample), self.names.of(match.found)
                file.write([[*names, given, searched, match.rank, *found, match.similarity]])


def _check_differ(columns: Sequence[Column]) -> None:
    names = [column.name for column in columns]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(
                f"two columns of the predictions would be called {name!r}", "have the run's classes renamed"
            )
