"""Files of what is a site's own: whole or not there, whatever ends the process."""

from __future__ import annotations

import os
from pathlib import Path

from cutlayer.broker.errors import SettingsError

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes, flag: str) -> None:
    """Write a file under another name, fsync it and rename it, so that what was there before stays until then.

    Args:
        path: The file; its folder has to be there.
        content: All of it.
        flag: What it was given with, for errors.

    Raises:
        SettingsError: When it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise SettingsError(
            f"{flag}{path} cannot be written: {error.strerror}", "name a file in a folder with room"
        ) from error
