"""Data sets by name.

A builder takes an agent's shard, the run's seed and options, and returns its `Dataset`. Options are checked by a
pydantic model, so an option may come as text from a command line or a TOML file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import pydantic
from pydantic import BaseModel

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.batches import SPLITS, Batch, Dataset, Split
from cutlayer.edge_agent.digits import DIGITS_NAME, DigitsDataset, DigitsOptions
from cutlayer.edge_agent.partition import Shard

__all__ = ["SPLITS", "Batch", "Dataset", "Split", "dataset_names", "open_dataset"]

Options = TypeVar("Options", bound=BaseModel)


def dataset_names() -> tuple[str, ...]:
    """Return the names that `open_dataset` knows, sorted."""
    return tuple(sorted(_BUILDERS))


def open_dataset(
    name: str, *, shard: Shard | None = None, seed: int = 0, options: Mapping[str, object] | None = None
) -> Dataset:
    """Open one agent's part of a data set.

    Args:
        name: One of `dataset_names()`.
        shard: Which part; None for the whole.
        seed: The run's seed, 0 or more; the same at every agent, or shards overlap.
        options: The data set's own options, typed or as text (`{"alpha": "0.5"}`).

    Raises:
        SettingsError: When the name or an option is unknown, an option is out of range, a package is missing,
            or the shard would be empty.
    """
    if name not in _BUILDERS:
        raise SettingsError(f"no data set {name!r}", f"choose one of {', '.join(dataset_names())}")
    if seed < 0:
        raise SettingsError(f"seed {seed} is negative", "choose 0 or more")
    return _BUILDERS[name](shard or Shard(), seed, options or {})


def _open_digits(shard: Shard, seed: int, options: Mapping[str, object]) -> Dataset:
    return DigitsDataset(shard, seed, _checked(DIGITS_NAME, DigitsOptions, options))


_BUILDERS: Mapping[str, Callable[[Shard, int, Mapping[str, object]], Dataset]] = {DIGITS_NAME: _open_digits}


def _checked(name: str, model: type[Options], options: Mapping[str, object]) -> Options:
    try:
        return model.model_validate(options)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"data set {name}, option {key} = {first['input']!r}: {first['msg']}",
            f"its options are {', '.join(f'{key}={field.default}' for key, field in model.model_fields.items())}",
        ) from error
