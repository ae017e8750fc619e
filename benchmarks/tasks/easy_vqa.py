"""Questions about pictures (PyPI `easy-vqa` 1.0, MIT): a coloured shape, and what of it is asked.

A quarter of the answers are words (three shapes, eight colours), the others yes and no, which are equally frequent: so
neither half tells the answer. Train and test share no picture.

Axes: B samples.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.batches import Batch, Dataset, Split
from cutlayer.edge_agent.partition import Shard

from .division import divide, draws, run_of
from .package_files import package_file, picture

__all__ = ["NAME", "open_easy_vqa", "read_split"]

NAME = "easy-vqa"
NUM_QUESTIONS: dict[Split, int] = {"train": 4_000, "test": 1_500}
SIDE = 32


def open_easy_vqa(shard: Shard, seed: int, alpha: float | None) -> Dataset:
    """Open one site's questions; skew is by answer.

    Raises:
        SettingsError: When the package is not installed.
    """
    train, test = _load(seed)
    return divide(NAME, train, test, np.asarray(train.targets, np.int64), shard, seed, alpha)


def read_split(folder: Path, classes: tuple[str, ...], num_questions: int, rng: np.random.RandomState) -> Batch:
    """Draw questions from a folder of the package: `questions.json` and `images/NUMBER.png`.

    Args:
        folder: Of one split.
        classes: The answers, in the order of the labels.
        num_questions: To draw; all where there are fewer.
        rng: Draws them.

    Returns:
        `image`: uint8 (B, 32, 32, 3); `question`: texts (B); labels, int64 (B).

    Raises:
        SettingsError: When an answer is none of `classes`, or a picture cannot be read.
    """
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    chosen = [rows[number] for number in rng.permutation(len(rows))[:num_questions]]
    if unknown := {answer for _, answer, _ in chosen} - set(classes):
        raise SettingsError(f"{folder} has the answers {sorted(unknown)}", "add them to classes in easy_vqa.toml")
    pictures = {number: picture(folder / "images" / f"{number}.png", SIDE) for number in {row[2] for row in chosen}}
    return Batch(
        inputs={
            "image": np.stack([pictures[number] for _, _, number in chosen]),
            "question": np.array([question for question, _, _ in chosen], dtype=object),
        },
        targets=np.array([classes.index(answer) for _, answer, _ in chosen], np.int64),
    )


@functools.lru_cache(maxsize=1)  # 16 MB a seed; the sites of a simulation ask for one after the other
def _load(seed: int) -> tuple[Batch, Batch]:
    folder, classes = package_file("easy_vqa", "data"), run_of(NAME).task.output_names
    train, test = (
        read_split(folder / split, classes, number, draws(seed, split)) for split, number in NUM_QUESTIONS.items()
    )
    return train, test
