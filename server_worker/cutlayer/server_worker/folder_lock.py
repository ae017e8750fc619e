"""One process at a time writes to an output folder: a lock that the system takes back however a process ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import weakref
from pathlib import Path

from cutlayer.broker.errors import SettingsError

__all__ = ["LOCK_FILE", "FolderLock"]

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"


class FolderLock:
    """Holds an output folder until it is released, or this object or its process is gone.

    Args:
        folder: An existing folder.

    Raises:
        SettingsError: When another process holds it, or the lock's file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_FILE
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise SettingsError(
                f"output folder {folder} cannot be written: {error.strerror}", "name another with --output"
            ) from error
        self._release = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                log.warning("%s cannot be locked (%s): let no other worker write there", folder, error.strerror)
                return
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            self._release()
            raise SettingsError(
                f"output folder {folder} is in use by another worker{f' (process {holder})' if holder else ''}",
                "stop that one, or name another folder with --output",
            ) from error
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have the folder."""
        self._release()
