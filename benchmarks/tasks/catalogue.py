"""The tasks that Cutlayer is compared on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.partition import Shard

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Task:
    """A data set and what is learned of it.

    Attributes:
        name: In results and on the command line.
        title: For people.
        family: Of modalities.
        source: Where the data come from.
        licence: Of the data.
        run: Complete run settings.
        open: Opens a site's part: which one, the seed, and the Dirichlet concentration of label skew, None for IID.
        skew: What the skew is of.
        metric: Headline metric, as `cutlayer.broker.task_metrics` calls it.
    """

    name: str
    title: str
    family: str
    source: str
    licence: str
    run: Path
    open: Callable[[Shard, int, float | None], Dataset]
    skew: str
    metric: str


def _open_digits(shard: Shard, seed: int, alpha: float | None) -> Dataset:
    options = {} if alpha is None else {"alpha": alpha}
    return open_dataset("demo:digits", shard=shard, seed=seed, options=options)


TASKS: dict[str, Task] = {
    "digits": Task(
        name="digits",
        title="Spoken and written digits",
        family="image and audio",
        source="scikit-learn's digits, and synthesized speech",
        licence="CC BY 4.0; GPL-3.0 synthesizer",
        run=_ROOT / "examples" / "digits.toml",
        open=_open_digits,
        skew="digit",
        metric="accuracy",
    )
}
