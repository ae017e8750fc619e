from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cutlayer.broker.errors import ManifestUnsatisfiable
from cutlayer.broker.manifest import CodecNames, Manifest
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.satisfiable import check_satisfiable
from support.small_run import AUDIO, IMAGE, small_dataset
from support.small_side import small_manifest


def test_data_that_fit_are_taken() -> None:
    check_satisfiable(small_manifest(), small_dataset(0))


def with_manifest(**changes: object) -> tuple[Manifest, ArrayDataset]:
    return small_manifest().model_copy(update=changes), small_dataset(0)


def with_data(**changes: object) -> tuple[Manifest, ArrayDataset]:
    return small_manifest(), replace(small_dataset(0), **changes)  # type: ignore[arg-type]


MISFITS: dict[str, tuple[Callable[[], tuple[Manifest, ArrayDataset]], str]] = {
    "no modality of the run": (lambda: with_data(modalities={"scan": IMAGE}), "has none of them but scan"),
    "another shape": (
        lambda: with_data(modalities={"audio": AUDIO, "image": IMAGE.model_copy(update={"height": 8})}),
        "needs image as",
    ),
    "other classes": (lambda: with_data(classes=("ja", "nein", "vielleicht")), "its classes are no, perhaps, yes"),
    "classes in another order": (lambda: with_data(classes=("yes", "perhaps", "no")), "its classes are"),
    "an unknown codec": (
        lambda: with_manifest(codecs=CodecNames(activations="int3")),
        "encodes activations as 'int3'",
    ),
    "no sample to train on": (
        lambda: with_data(
            splits={"train": small_dataset(0).batch("train", np.arange(0)), "test": small_dataset(0).splits["test"]}
        ),
        "has no training sample",
    ),
}


@pytest.mark.parametrize(("make", "text"), MISFITS.values(), ids=MISFITS)
def test_data_that_do_not_fit_are_named_with_a_fix(
    make: Callable[[], tuple[Manifest, ArrayDataset]], text: str
) -> None:
    with pytest.raises(ManifestUnsatisfiable) as caught:
        check_satisfiable(*make())
    assert text in caught.value.what
    assert caught.value.fix
    assert caught.value.exit_code == 4


def test_more_modalities_than_the_run_needs_are_no_harm() -> None:
    check_satisfiable(small_manifest().model_copy(update={"modalities": {"image": IMAGE}}), small_dataset(0))
