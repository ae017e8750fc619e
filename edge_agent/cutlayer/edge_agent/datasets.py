"""Data sets by what `--data` says: one that is made here, a user's files, or her own code.

    demo:digits                 made on the spot
    ./scans, ./scans/data.csv   a table of files, texts, values and labels (CSV or Parquet), or its folder
    ./scans                     a folder a class
    ./signals.npz               arrays
    package.module:factory      a callable that returns a `Dataset`

A user's own data are opened for a run: which columns matter, how large images are and which classes there are is
known from its manifest only. Options are checked by pydantic models, so an option may come as text from a command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import pydantic
from pydantic import BaseModel

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import Manifest, ModalitySpec, TokensSpec
from cutlayer.edge_agent.batches import SPLITS, Batch, Dataset, Split
from cutlayer.edge_agent.data_factory import find_factory, is_factory, open_from_factory
from cutlayer.edge_agent.data_opening import check_user_data, open_user_data
from cutlayer.edge_agent.data_options import user_data_options
from cutlayer.edge_agent.data_request import DataRequest, Rows
from cutlayer.edge_agent.digits import DIGITS_NAME, DigitsDataset, DigitsOptions
from cutlayer.edge_agent.partition import Shard

__all__ = ["DATA_FORMS", "SPLITS", "Batch", "Dataset", "Split", "check_data", "dataset_names", "open_dataset"]

Options = TypeVar("Options", bound=BaseModel)

DEMO = "demo:"
DATA_FORMS = "demo:digits, a folder, a .csv, .parquet or .npz file, or package.module:factory"


def dataset_names() -> tuple[str, ...]:
    """Return the names of the data sets that are made here, sorted."""
    return tuple(sorted(_BUILDERS))


def check_data(name: str, *, shard: Shard | None = None, options: Mapping[str, object] | None = None) -> None:
    """Check as much of a data set as can be before a run is known, so that a wrong flag shows at once.

    Raises:
        SettingsError: As `open_dataset`.
    """
    if name.startswith(DEMO):
        open_dataset(name, shard=shard, options=options)
    elif is_factory(name):
        find_factory(name)
    else:
        check_user_data(name, user_data_options(options or {}))


def open_dataset(
    name: str,
    *,
    shard: Shard | None = None,
    seed: int = 0,
    options: Mapping[str, object] | None = None,
    manifest: Manifest | None = None,
    rows: Rows | None = None,
    wants_targets: bool = True,
) -> Dataset:
    """Open one agent's part of a data set.

    Args:
        name: What `--data` says.
        shard: Which part; None for the whole.
        seed: The run's seed, 0 or more; the same at every agent, or shards overlap.
        options: The data set's own options, typed or as text (`{"alpha": "0.5"}`).
        manifest: The run, which a user's own data are opened for; those that are made here need none.
        rows: Which rows a visit asks for; None for training.
        wants_targets: Whether targets are of use.

    Raises:
        SettingsError: When the name or an option is unknown, an option is out of range, a package is missing, the
            data cannot be read or do not fit the run, or the shard would be empty.
    """
    if seed < 0:
        raise SettingsError(f"seed {seed} is negative", "choose 0 or more")
    shard, options = shard or Shard(), options or {}
    if name.startswith(DEMO):
        if name not in _BUILDERS:
            raise SettingsError(f"no data set {name!r}", f"choose one of {', '.join(dataset_names())}")
        return _BUILDERS[name](shard, seed, options)
    if manifest is None:
        raise SettingsError(f"{name} is opened for a run, and none is given", "give the run's manifest")
    request = DataRequest(
        _as_raw(name, manifest.modalities),
        manifest.task,
        shard,
        seed,
        options,
        rows,
        wants_targets,
        validates=manifest.evaluation.selects,
    )
    return open_from_factory(name, request) if is_factory(name) else open_user_data(name, request)


def _as_raw(name: str, modalities: Mapping[str, ModalitySpec]) -> dict[str, ModalitySpec]:
    """Return specifications that say what raw samples are, also of modalities whose tokens are the sites' affair.

    Raises:
        SettingsError: When one does not say it, and the data are files.
    """
    found: dict[str, ModalitySpec] = {}
    for modality, spec in modalities.items():
        raw = spec.raw if isinstance(spec, TokensSpec) else spec
        if raw is None and not is_factory(name):
            raise SettingsError(
                f"--data {name}: the run does not say what a raw {modality} is",
                f"add [modalities.{modality}.raw] to its settings, or give the data as package.module:factory",
            )
        found[modality] = spec if raw is None else raw
    return found


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
