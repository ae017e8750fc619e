"""All tasks of the benchmark, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.partition import Shard

from . import easy_vqa, emoji, motions, prompts, vitals
from .digits import open_digits
from .division import run_file

__all__ = ["TASKS", "Task"]


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        name: As a folder or a flag has it.
        title: For people.
        family: The paper's data that it stands for (arXiv 2502.06355, section V).
        source: Packages that the data are in, and their releases.
        licence: Of the data.
        run: Complete run settings.
        open: Opens one site's part, given shard, seed and the concentration alpha of the Dirichlet skew (None: IID).
            The seed makes split, partition and noise; at every site the same one.
        skew: What the skew divides training samples by.
        metric: The headline metric, by its name in `cutlayer.broker.task_metrics`; more is better in all tasks.
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


_ALL = (
    Task(
        name="digits",
        title="Spoken and written digits",
        family="video with sound (UCF101, Kinetics-Sounds)",
        source="PyPI scikit-learn 1.5 or newer, espeakng-loader 0.2.4",
        licence="CC-BY-4.0 (scans), GPL-3.0 (synthesizer, loaded and not bundled)",
        run=run_file("digits"),
        open=open_digits,
        skew="class",
        metric="accuracy",
    ),
    Task(
        name=easy_vqa.NAME,
        title="Questions about pictures",
        family="image and question (COCO-QA)",
        source="PyPI easy-vqa 1.0",
        licence="MIT",
        run=run_file(easy_vqa.NAME),
        open=easy_vqa.open_easy_vqa,
        skew="class",
        metric="accuracy",
    ),
    Task(
        name=emoji.NAME,
        title="Pictures and their names",
        family="image-text retrieval (Flickr30k, MS-COCO)",
        source="npm emoji-datasource-twitter and -google 16.0.0, emojibase-data 17.0.0",
        licence="CC-BY-4.0 (Twitter's drawings), Apache-2.0 (Google's), MIT (names)",
        run=run_file(emoji.NAME),
        open=emoji.open_emoji,
        skew="group",
        metric="recall_10",
    ),
    Task(
        name=prompts.NAME,
        title="Telephone prompts",
        family="speech and utterance (MELD)",
        source="Debian asterisk-core-sounds-{en,es,fr,it,ru}-wav 1.6.1",
        licence="CC-BY-SA-3.0 (Russian: CC-BY-3.0)",
        run=run_file(prompts.NAME),
        open=prompts.open_prompts,
        skew="language",
        metric="accuracy",
    ),
    Task(
        name=motions.NAME,
        title="Exercises from a watch",
        family="sensors (beyond the paper)",
        source="PyPI seglearn 1.2.5",
        licence="BSD-3-Clause",
        run=run_file(motions.NAME),
        open=motions.open_motions,
        skew="class",
        metric="accuracy",
    ),
    Task(
        name=vitals.NAME,
        title="Progression of diabetes",
        family="clinical tables (beyond the paper)",
        source="PyPI scikit-learn 1.5 or newer",
        licence="BSD-3-Clause",
        run=run_file(vitals.NAME),
        open=vitals.open_vitals,
        skew="fourth of the target",
        metric="r2",
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
