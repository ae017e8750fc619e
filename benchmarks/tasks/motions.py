"""Shoulder exercises from a watch's two sensors (PyPI `seglearn` 1.2.5, BSD; Burns et al., arXiv 1802.01489).

Ten people did seven exercises with each arm: acceleration and gyroscope at 50 Hz are two modalities. A sample is 1.28 s
of a recording; the people that are tested are not trained on.

Axes: B windows, T steps, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.edge_agent.batches import Batch, Dataset
from cutlayer.edge_agent.partition import Shard

from .division import divide, held_out, run_of
from .package_files import package_file

__all__ = ["NAME", "open_motions", "windows"]

NAME = "motions"
TEST_SHARE = 0.3
NUM_STEPS = 64


def open_motions(shard: Shard, seed: int, alpha: float | None) -> Dataset:
    """Open one site's windows; skew is by exercise.

    Raises:
        SettingsError: When the package is not installed.
    """
    recordings = _recordings()
    people = [str(person) for person in recordings["subject"]]
    test_people = held_out(sorted(set(people)), TEST_SHARE, seed)
    is_test = np.array([person in test_people for person in people])
    train, test = (
        windows([recordings["X"][number] for number in numbers], recordings["y"][numbers])
        for numbers in (np.flatnonzero(~is_test), np.flatnonzero(is_test))
    )
    return divide(NAME, train, test, np.asarray(train.targets, np.int64), shard, seed, alpha)


def windows(recordings_TC: Sequence[NDArray[np.floating]], labels: NDArray[np.integer]) -> Batch:
    """Cut recordings into windows that do not overlap; what is left at an end is dropped.

    Args:
        recordings_TC: Of six channels each: acceleration x, y, z, and rates of turn.
        labels: Exercise of each recording.

    Returns:
        `acceleration` and `gyroscope`: float32 (B, 64, 3); labels, int64 (B).
    """
    cut = [
        values_TC[: len(values_TC) // NUM_STEPS * NUM_STEPS].reshape(-1, NUM_STEPS, values_TC.shape[1])
        for values_TC in recordings_TC
    ]
    windows_BTC = np.concatenate(cut).astype(np.float32)
    return Batch(
        inputs={"acceleration": windows_BTC[:, :, :3], "gyroscope": windows_BTC[:, :, 3:]},
        targets=np.repeat(labels, [len(each) for each in cut]).astype(np.int64),
    )


@functools.cache
def _recordings() -> Mapping[str, Any]:
    """Read the package's recordings, X (T, 6) each, with `y`, `subject`, `y_labels`.

    The file is a pickle inside an .npy; it comes with the package's code, which is trusted as much.
    """
    path = package_file("seglearn", "data/watch_dataset.npy")
    content: dict[str, Any] = np.load(path, allow_pickle=True).item()
    assert tuple(content["y_labels"]) == run_of(NAME).task.output_names
    return content
