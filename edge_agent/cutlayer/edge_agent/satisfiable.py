"""Whether an agent can take part in a run: what the run manifest asks of its data, and of what is installed here."""

from __future__ import annotations

from cutlayer.broker.errors import ManifestUnsatisfiable
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.compression import CodecError, codec_from_name
from cutlayer.edge_agent.batches import Dataset

__all__ = ["check_satisfiable"]


def check_satisfiable(manifest: Manifest, dataset: Dataset, *, is_visit: bool = False) -> None:
    """Check that an agent with these data can take part in a run.

    Args:
        manifest: The run.
        dataset: The agent's samples.
        is_visit: Whether it trains nothing.

    Raises:
        ManifestUnsatisfiable: When it cannot; the text names the first thing that is missing and the fix.
    """
    if not manifest.modalities.keys() & dataset.modalities.keys():
        raise ManifestUnsatisfiable(
            f"its modalities are {', '.join(sorted(manifest.modalities))}, and {dataset.name} has none of them but "
            f"{', '.join(sorted(dataset.modalities)) or 'nothing'}",
            "give data with one of these at least (--data), or take part in another run",
        )
    if isinstance(manifest.task, RetrievalSpec) and len(manifest.modalities.keys() & dataset.modalities.keys()) < 2:
        raise ManifestUnsatisfiable(
            f"it matches {' and '.join(manifest.task.between)}, and {dataset.name} has only "
            f"{', '.join(sorted(dataset.modalities))}",
            "give data that have both (--data)",
        )
    for name, spec in manifest.modalities.items():
        have = dataset.modalities.get(name)
        if have is not None and have.raw_form != spec.raw_form:
            raise ManifestUnsatisfiable(
                f"it needs {name} as {spec!r}, and {dataset.name} gives {have!r}",
                "prepare the data as the run asks, or change [modalities] in the run settings",
            )
    task = manifest.task
    if dataset.classes != task.output_names:
        raise ManifestUnsatisfiable(
            f"its {task.called} are {', '.join(task.output_names[:12])}, and {dataset.name} has "
            f"{', '.join(dataset.classes[:12])}",
            f"name the {task.called} as the run does, in its order",
        )
    for kind, codec in manifest.codecs:
        try:
            codec_from_name(codec)
        except CodecError as error:
            raise ManifestUnsatisfiable(
                f"it encodes {kind} as {codec!r}: {error}", "install a newer release"
            ) from error
    if not is_visit and dataset.num_samples("train") < 1:
        raise ManifestUnsatisfiable(f"{dataset.name} has no training sample", "give data that have some (--data)")
