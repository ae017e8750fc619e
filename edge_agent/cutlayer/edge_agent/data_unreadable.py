"""Files that cannot be read: each is named once, a few are borne, and many end the agent.

A file that cannot be read counts as an empty cell: its sample lacks that modality.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cutlayer.broker.errors import SettingsError

__all__ = ["NUM_NAMED", "Unreadable", "UnreadableFiles"]

log = logging.getLogger(__name__)

NUM_NAMED = 5
"""Files named in one error."""
NUM_LOGGED = 100
"""Files named in the log; with `--debug`, all."""


class Unreadable(Exception):
    """A file cannot be read, or is not what its modality takes. Caught by whoever reads the data set.

    Args:
        reason: Why, without the file's name.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    @classmethod
    def of(cls, error: Exception) -> Unreadable:
        """Return what an error means to a person."""
        if isinstance(error, OSError) and error.strerror:
            return cls(error.strerror)
        return cls(" ".join(str(error).split()) or type(error).__name__)


class UnreadableFiles:
    """Counts them against the share that is borne.

    Args:
        num_files: Files of this agent in all.
        max_share: Share of them that may be unreadable.
    """

    def __init__(self, num_files: int, max_share: float) -> None:
        self.num_files = num_files
        self.max_share = max_share
        self.reasons: dict[Path, str] = {}

    def add(self, path: Path, reason: str) -> None:
        """Take notice of a file, and name it in the log."""
        if path not in self.reasons:
            self.reasons[path] = reason
            level = logging.WARNING if len(self.reasons) <= NUM_LOGGED else logging.DEBUG
            log.log(level, "cannot read %s: %s", path, reason)

    def check(self) -> None:
        """Check the share.

        Raises:
            SettingsError: When it is exceeded; the text has the number and the first files.
        """
        if len(self.reasons) <= self.max_share * self.num_files:
            return
        head = "".join(f"\n    {path}: {reason}" for path, reason in list(self.reasons.items())[:NUM_NAMED])
        more = len(self.reasons) - NUM_NAMED
        raise SettingsError(
            f"{len(self.reasons)} of {self.num_files} files cannot be read, more than {self.max_share:.3g} of them:"
            + head
            + (f"\n    and {more} more" if more > 0 else ""),
            "mend or remove them, or bear more with --max-unreadable",
        )
