"""Which rows are for training and which for testing, where the table does not say.

A row's place is decided by a hash of what it is, not by its number: it stays where it is when rows are sorted, and
nearly always when others are added. Each class gives the same share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.batches import SPLITS
from cutlayer.edge_agent.data_table import Table

__all__ = ["SPLIT_NAMES", "hashed_split", "named_split"]

SPLIT_NAMES = ("train", "val", "test")
"""What a column `split` may hold."""


def named_split(table: Table, column: str) -> NDArray[np.str_]:
    """Return each row's split as the table says, str (R).

    Raises:
        SettingsError: When a cell holds something else.
    """
    cells = table.columns[column]
    for row, cell in enumerate(cells):
        if cell not in SPLIT_NAMES:
            raise SettingsError(
                f"{table.where(row, column)}: {cell!r} is no split",
                f"write {', '.join(SPLIT_NAMES[:-1])} or {SPLIT_NAMES[-1]} in every row, or leave the column out",
            )
    return np.array(cells, dtype=np.str_)


def hashed_split(
    identities: Sequence[str], strata: Sequence[str], *, test_share: float, seed: int = 0
) -> NDArray[np.str_]:
    """Choose the test rows: of each stratum those with the lowest hashes, `test_share` of them, rounded.

    Args:
        identities: What each row is; rows that are alike go by their order.
        strata: What each row's share is taken of: its class.
        test_share: Share of the test rows.
        seed: Another one gives another choice.

    Returns:
        `train` or `test` for each row, str (R).
    """
    keys = [hashlib.blake2b(f"{seed}/{identity}".encode(), digest_size=8).digest() for identity in identities]
    rows_of: dict[str, list[int]] = {}
    for row, stratum in enumerate(strata):
        rows_of.setdefault(stratum, []).append(row)
    splits_R = np.full(len(identities), SPLITS[0], dtype="<U5")
    for rows in rows_of.values():
        rows.sort(key=lambda row: (keys[row], row))
        splits_R[rows[: round(test_share * len(rows))]] = "test"
    return splits_R
