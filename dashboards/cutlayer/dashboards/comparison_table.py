"""Runs beside each other on a terminal: a column a run, in as many tables as the width asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from cutlayer.broker.command_line import printable
from cutlayer.dashboards.comparison import ComparedRun, ComparisonRow, comparison_rows, differing_settings

__all__ = ["ComparisonTable"]

NAME_WIDTH: Final = 25
RUN_WIDTH: Final = 16
"""Least width of a run's column."""


class ComparisonTable:
    """The comparison, as wide as the terminal.

    Args:
        runs: At least one; each is compared with the first.
    """

    def __init__(self, runs: Sequence[ComparedRun]) -> None:
        self._labels = [printable(run.label) for run in runs]
        rows = comparison_rows(runs)
        different = differing_settings(runs) if len(runs) > 1 else []
        self._rows = rows + [ComparisonRow("settings that differ", key, texts) for key, texts in different]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a table for every few runs; the first run is in each of them."""
        room = max((options.max_width - NAME_WIDTH) // (RUN_WIDTH + 2), 2)
        for columns in _columns(len(self._labels), room):
            yield self._table(columns, options.max_width)

    def _table(self, columns: Sequence[int], width: int) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        table.add_column("", no_wrap=True, max_width=NAME_WIDTH, overflow="ellipsis")
        most = max((width - NAME_WIDTH) // len(columns) - 2, RUN_WIDTH)
        for index in columns:
            table.add_column(Text(self._labels[index]), justify="right", overflow="fold", max_width=most)
        section = ""
        for row in self._rows:
            if row.section != section:
                table.add_row(Text(row.section, "bold"), *([""] * len(columns)))
                section = row.section
            cells = (Text(printable(row.texts[index]), "bold green" if index in row.best else "") for index in columns)
            table.add_row(Text(f"  {printable(row.name)}"), *cells)
        return table


def _columns(num_runs: int, room: int) -> Iterator[list[int]]:
    """Yield the runs of each table: all of them where there is room, else the first and some others."""
    if num_runs <= room:
        yield list(range(num_runs))
        return
    for start in range(1, num_runs, room - 1):
        yield [0, *range(start, min(start + room - 1, num_runs))]
