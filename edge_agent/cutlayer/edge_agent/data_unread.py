"""What data have and nothing reads, where the run wants more than it finds: an option may have been forgotten."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from cutlayer.edge_agent.data_readers import cell_names
from cutlayer.edge_agent.data_request import DataRequest

__all__ = ["NUM_NAMED", "say_unread"]

log = logging.getLogger(__name__)

NUM_NAMED = 12
"""Columns named in one line."""


def say_unread(
    name: str, request: DataRequest, columns: Collection[str], unread: Sequence[str], *, is_by_cells: bool = False
) -> None:
    """Warn of modalities that the data may well have under another name.

    Args:
        name: The data.
        request: What the run asks for.
        columns: Modalities that were found.
        unread: What the data have besides.
        is_by_cells: Whether the cells that are read decide which rows are for testing.
    """
    lacking = {modality: spec for modality, spec in sorted(request.modalities.items()) if modality not in columns}
    if not lacking or not unread:
        return
    kind = "ARRAY" if name.endswith(".npz") else "COLUMN"
    keys = lacking if kind == "ARRAY" else cell_names(lacking)
    log.warning(
        "%s: not read: %s; to give %s: %s%s",
        name,
        ", ".join(unread[:NUM_NAMED]) + (f" and {len(unread) - NUM_NAMED} more" * (len(unread) > NUM_NAMED)),
        " and ".join(lacking),
        " ".join(f"--data-option {key}={kind}" for key in [*keys][:NUM_NAMED]),
        "; which rows are for testing follows from what is read: without the options of training they may be rows that "
        "it has learned from"
        if is_by_cells and request.rows not in (None, "all")
        else "",
    )
