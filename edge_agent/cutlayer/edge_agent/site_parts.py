"""What a site has of the model by itself, beside what comes with the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["SiteParts", "TokenizerSource"]


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """Where a tokenizer of the site's own comes from.

    Attributes:
        factory: `package.module:callable`, which makes a torch module.
        weights: What it begins with, safetensors; None for what the callable gives.
        state: File of what it has learned, where the run trains tokenizers; None to keep that in memory alone.
    """

    factory: str
    weights: Path | None = None
    state: Path | None = None


@dataclass(frozen=True, slots=True)
class SiteParts:
    """Parts of the model that are one site's own.

    Attributes:
        agent: The agent's topic, which its files are of.
        head: File of its head, where the run's heads are at the agents; None to keep it in memory alone.
        tokenizers: Those that the run leaves to its sites, by modality.
    """

    agent: str = ""
    head: Path | None = None
    tokenizers: Mapping[str, TokenizerSource] = field(default_factory=dict)
