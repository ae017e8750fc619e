"""A user's own data set in Python: `package.module:factory`.

The factory is given what the run asks for, and returns whatever has the methods of `Dataset`. The present folder is
searched for the module first, as `python -m` does. Below is a whole one (`tests/edge_agent/test_data_factory.py` runs
it):

    import numpy as np
    from cutlayer.edge_agent.batches import Batch


    class Beats:
        name = "beats"

        def __init__(self, request):
            self.classes, self.modalities = request.task.output_names, dict(request.modalities)
            self.length = request.modalities["audio"].num_samples

        def num_samples(self, split):
            return 80 if split == "train" else 20

        def batch(self, split, indices):
            waves_BT = np.sin(np.outer(indices + 1, np.arange(self.length)) / 50).astype(np.float32)
            return Batch({"audio": waves_BT}, targets=indices % len(self.classes))
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.data_request import DataRequest

__all__ = ["find_factory", "is_factory", "open_from_factory"]

_METHODS = ("name", "classes", "modalities", "num_samples", "batch")


def is_factory(name: str) -> bool:
    """Return whether a name has the form `package.module:factory`."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name) is not None


def find_factory(name: str, flag: str = "--data ") -> Callable[..., Any]:
    """Import a factory.

    Args:
        name: `package.module:factory`.
        flag: What it was given with, for errors.

    Raises:
        SettingsError: When the module cannot be imported, or has no such callable.
    """
    module_name, _, path = name.partition(":")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise SettingsError(
            f"{flag}{name}: {error}",
            'pip install "cutlayer[torch]"'
            if error.name == "torch"
            else "start from the folder that the module is in, or install it into this environment",
        ) from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise SettingsError(f"{flag}{name}: {module_name} has no callable {path!r}", "name a function or a class of it")
    factory: Callable[..., Any] = found
    return factory


def open_from_factory(name: str, request: DataRequest) -> Dataset:
    """Call a factory.

    Raises:
        SettingsError: When it cannot be found, or what it returns is no data set.
    """
    dataset: Dataset = find_factory(name)(request)
    if lacking := [method for method in _METHODS if not hasattr(dataset, method)]:
        raise SettingsError(
            f"--data {name} returned {type(dataset).__name__}, which has no {', '.join(lacking)}",
            "return an object with the methods of cutlayer.edge_agent.batches.Dataset",
        )
    return dataset
