"""The doctor's look at the site's own data: opened as an agent would open them for the run that is announced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from cutlayer.broker.errors import CutlayerError, ManifestUnsatisfiable, SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.edge_agent.datasets import check_data, open_dataset
from cutlayer.edge_agent.partition import Shard
from cutlayer.edge_agent.satisfiable import check_satisfiable
from cutlayer.simulation.doctor_report import Finding, found, problem, warning

__all__ = ["SiteData", "check_site_data"]


@dataclass(frozen=True, slots=True)
class SiteData:
    """What an agent's flags say of its data.

    Attributes:
        name: `--data`.
        shard: `--shard`.
        options: `--data-option`.
    """

    name: str
    shard: Shard = field(default_factory=Shard)
    options: Mapping[str, object] = field(default_factory=dict)


def check_site_data(manifest: Manifest | None, data: SiteData) -> Finding:
    """Open an agent's data for the run; without one, look at what can be looked at."""
    try:
        if manifest is None:
            check_data(data.name, shard=data.shard, options=data.options)
            return warning(
                "data",
                f"{data.name} is there; whether it fits cannot be said without a run",
                "look again once a run is announced",
            )
        dataset = open_dataset(data.name, shard=data.shard, seed=manifest.seed, options=data.options, manifest=manifest)
        check_satisfiable(manifest, dataset)
    except (SettingsError, ManifestUnsatisfiable) as error:
        what = error.problem if isinstance(error, SettingsError) else error.what
        return problem("data", what, error.fix, exit_code=error.exit_code)
    except CutlayerError as error:
        return problem("data", str(error), "", exit_code=error.exit_code)
    sizes = {split: dataset.num_samples(split) for split in ("train", "test")}
    lacking = sorted(manifest.modalities.keys() - dataset.modalities.keys())
    values: dict[str, JsonValue] = {"num_train": sizes["train"], "num_test": sizes["test"], "lacking": [*lacking]}
    fact = (
        f"{data.name} fits the run: {sizes['train']:,} samples for training, {sizes['test']:,} for testing, with "
        f"{' and '.join(sorted(manifest.modalities.keys() & dataset.modalities.keys()))}"
    )
    if lacking:
        fix = "nothing, if this site has none of it; else name its column (--data-option NAME=COLUMN, docs/data.md)"
        return warning("data", f"{fact}; without {' and '.join(lacking)}", fix, values)
    return found("data", fact, values)
