"""Versions of what a run depends on."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Return the versions of what a run depends on."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for package in ("cutlayer", "torch", "timm", "numpy", "paho-mqtt", "msgpack", "lz4", "zstandard"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
