"""A progress bar on a terminal for what takes long, and nothing for what does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["with_progress"]

Item = TypeVar("Item")

_SHOWN_FROM = 2_000
"""Items; fewer headers are read in less than a second."""


def with_progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Pass items on, and show how many of `total` have passed."""
    if total < _SHOWN_FROM:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, what, total, console=console, transient=True, disable=not console.is_terminal)
