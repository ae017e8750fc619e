"""Where installed packages keep their data, or an error that says what to install. Nothing is imported for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError

__all__ = ["DATA_FOLDER", "FETCH", "package_file", "picture"]

DATA_FOLDER = Path(__file__).parents[2] / "runs" / "bench-data"
"""Where `make bench-data` puts what pip has no package of."""
FETCH = "make bench-data"


def package_file(package: str, path: str, extra: str = "bench") -> Path:
    """Return a file or folder inside a Python package.

    Args:
        package: Its import name.
        path: Inside it.
        extra: Of cutlayer, which installs it.

    Raises:
        SettingsError: When the package is not installed, or has no such file.
    """
    fix = f'pip install "cutlayer[{extra}]", or `make setup` in a clone'
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError(f"this task's data are in the package {package}, which is not installed", fix)
    found = Path(spec.submodule_search_locations[0]) / path
    if not found.exists():
        raise SettingsError(f"the package {package} has no {path} here: it is another release", fix)
    return found


def picture(path: Path, side: int) -> NDArray[np.uint8]:
    """Read a square picture: on white where it is transparent, its pixels averaged down.

    Args:
        path: A file that Pillow reads.
        side: Of what is returned, in pixels; divides the picture's.

    Returns:
        uint8 (side, side, 3).

    Raises:
        SettingsError: When the file cannot be read, or its sides are no multiple of `side`.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            drawn = file.convert("RGBA")
    except OSError as error:
        problem = f"{path} cannot be read as a picture ({error})"
        raise SettingsError(problem, f"{FETCH}, or install its package anew") from error
    width, height = drawn.size
    if height != width or height % side:
        raise SettingsError(f"{path} has {height} x {width} pixels", f"use pictures with a multiple of {side} a side")
    on_white = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    return np.asarray(on_white.reduce(height // side), np.uint8)
