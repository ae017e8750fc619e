"""What this process has used, by the kernel's count."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

__all__ = ["cpu_seconds", "peak_rss_bytes"]

_STATUS = Path("/proc/self/status")


def cpu_seconds() -> float:
    """Return processor seconds of this process, user and system."""
    return time.process_time()


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process in bytes.

    Linux counts it in VmHWM from the start of the program; `ru_maxrss` would also count the parent before exec.
    """
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
