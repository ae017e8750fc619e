"""What a site has of the model by itself, beside what comes with the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SiteParts"]


@dataclass(frozen=True, slots=True)
class SiteParts:
    """Parts of the model that are one site's own.

    Attributes:
        agent: The agent's topic, which its files are of.
        head: File of its head, where the run's heads are at the agents; None to keep it in memory alone.
    """

    agent: str = ""
    head: Path | None = None
