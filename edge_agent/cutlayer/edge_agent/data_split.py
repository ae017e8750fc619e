"""Which rows are for training and which for testing, where the table does not say.

A row's place is decided by a hash of what it is, not by its number: it stays where it is when rows are sorted, and
nearly always when others are added. Each class gives the same share, and rows of one `id` are never parted.
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
    """Choose what is for testing: of each stratum what has the lowest hashes, `test_share` of it, rounded.

    Args:
        identities: What each row is. Rows that are the same (scans of one patient) go the same way together.
        strata: What the share is taken of, for each row: its class. Of rows that are the same the first one's counts.
        test_share: Share that is for testing.
        seed: Another one gives another choice.

    Returns:
        `train` or `test` for each row, str (R).
    """
    strata_of: dict[str, str] = {}
    for identity, stratum in zip(identities, strata, strict=True):
        strata_of.setdefault(identity, stratum)
    members: dict[str, list[str]] = {}
    for identity, stratum in strata_of.items():
        members.setdefault(stratum, []).append(identity)
    chosen: set[str] = set()
    for group in members.values():
        group.sort(key=lambda identity: _hash(identity, seed))
        chosen.update(group[: round(test_share * len(group))])
    return np.array(["test" if identity in chosen else SPLITS[0] for identity in identities], dtype=np.str_)


def _hash(identity: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{identity}".encode(), digest_size=8).digest()
