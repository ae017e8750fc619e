"""Spoken and written digits: right classes, nothing shared between splits, the same sample for the same index."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.batches import SPLITS, Split
from cutlayer.edge_agent.digits import DigitsDataset, DigitsOptions, written_digits
from cutlayer.edge_agent.partition import Shard

CLEAN = DigitsOptions(image_noise=0.0, speech_snr_db=60.0, views=1, test_views=1)


def whole(options: DigitsOptions = CLEAN, seed: int = 0) -> DigitsDataset:
    return DigitsDataset(Shard(), seed, options)


def all_of(dataset: DigitsDataset, split: Split) -> NDArray[np.int64]:
    return np.arange(dataset.num_samples(split))


def scans_in(images_BHWC: NDArray[np.uint8]) -> set[bytes]:
    return {image.tobytes() for image in images_BHWC}


def test_scans_equal_those_that_scikit_learn_loads() -> None:
    images_BHW, labels_B = written_digits()
    expected = load_digits()
    np.testing.assert_array_equal(images_BHW, expected.images)
    np.testing.assert_array_equal(labels_B, expected.target)


def test_samples_have_the_form_that_their_specification_says() -> None:
    dataset = whole()
    batch = dataset.batch("train", np.arange(3))
    assert set(batch.inputs) == set(dataset.modalities) == {"audio", "image"}
    described = {name: (values.shape, values.dtype.name) for name, values in batch.inputs.items()}
    assert described == {"image": ((3, 8, 8, 1), "uint8"), "audio": ((3, 7_332), "float32")}
    assert (batch.targets.shape, batch.targets.dtype.name) == ((3,), "int64")
    assert [spec.num_tokens for spec in dataset.modalities.values()] == [16, 16]
    assert dataset.classes[7] == "seven"


def test_default_sizes_are_two_views_to_train_and_over_4000_samples_to_test() -> None:
    dataset = whole(DigitsOptions())
    assert dataset.num_samples("train") == 2 * 1_437
    assert dataset.num_samples("test") == 12 * 360


def test_train_and_test_share_no_scan() -> None:
    # The only scans seen twice are those that the 1,797 themselves hold twice.
    dataset = whole()
    seen = {split: dataset.batch(split, all_of(dataset, split)) for split in SPLITS}
    assert seen["train"].targets.size + seen["test"].targets.size == 1_797
    shared = scans_in(seen["train"].inputs["image"]) & scans_in(seen["test"].inputs["image"])
    assert not shared


def test_labels_are_those_of_the_scans() -> None:
    dataset, (images_BHW, labels_B) = whole(), written_digits()
    label_of = {
        np.rint(image * (255 / 16)).astype(np.uint8).tobytes(): label
        for image, label in zip(images_BHW, labels_B, strict=True)
    }
    batch = dataset.batch("test", all_of(dataset, "test"))
    assert [label_of[image.tobytes()] for image in batch.inputs["image"]] == batch.targets.tolist()


def test_the_spoken_digit_is_the_written_one() -> None:
    # Nearly clean speech: the nearest clip of all, by its spectrum, must be a clip of the sample's own class.
    from cutlayer.edge_agent.speech import spoken_digits

    def spectrum(waveform_T: NDArray[np.float32]) -> NDArray[np.float64]:
        magnitude = np.abs(np.fft.rfft(waveform_T, n=16_384))
        return np.asarray(magnitude / np.linalg.norm(magnitude))

    clips = [(digit, clip) for digit, some in enumerate(spoken_digits()["test"]) for clip in some]
    bank = np.stack([spectrum(clip.astype(np.float32)) for _, clip in clips])
    batch = whole().batch("test", np.arange(40))
    for waveform_T, label in zip(batch.inputs["audio"], batch.targets, strict=True):
        assert clips[int((bank @ spectrum(waveform_T)).argmax())][0] == label


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_shards_divide_the_scans_and_all_views_stay_together(alpha: float | None) -> None:
    options = DigitsOptions(image_noise=0.0, speech_snr_db=60.0, views=2, test_views=3, alpha=alpha)
    shards = [DigitsDataset(Shard(index, 4), 3, options) for index in range(4)]
    for split, total in (("train", 2 * 1_437), ("test", 3 * 360)):
        name: Split = "train" if split == "train" else "test"
        assert sum(shard.num_samples(name) for shard in shards) == total
        scans = [scans_in(shard.batch(name, all_of(shard, name)).inputs["image"]) for shard in shards]
        assert sum(len(part) for part in scans) == len(set.union(*scans)) == total // (2 if name == "train" else 3)


def test_alpha_skews_the_train_labels_and_not_the_test_labels() -> None:
    shard = DigitsDataset(Shard(0, 4), 0, DigitsOptions(alpha=0.1, views=1, test_views=1))
    largest = {}
    for split in SPLITS:
        counts_C = np.bincount(shard.batch(split, all_of(shard, split)).targets, minlength=10)
        largest[split] = counts_C.max() / counts_C.sum()
    assert largest["train"] > 0.3 > 0.25 > largest["test"]


def test_a_sample_is_the_same_alone_in_another_order_and_in_another_shard() -> None:
    options = DigitsOptions(views=2)
    dataset, again = whole(options), whole(options)
    together = dataset.batch("train", np.arange(20))
    backwards = again.batch("train", np.arange(20)[::-1])
    for modality, values in together.inputs.items():
        np.testing.assert_array_equal(values, backwards.inputs[modality][::-1])
    shard = DigitsDataset(Shard(1, 3), 0, options)
    mine = shard.batch("train", all_of(shard, "train"))
    everything = dataset.batch("train", all_of(dataset, "train"))
    known = {waveform.tobytes() for waveform in everything.inputs["audio"]}
    assert {waveform.tobytes() for waveform in mine.inputs["audio"]} <= known


def test_views_and_seeds_draw_noise_of_their_own() -> None:
    options = DigitsOptions(views=3)
    first = whole(options).batch("train", np.arange(3))
    other_seed = whole(options, seed=1).batch("train", np.arange(3))
    assert len(scans_in(first.inputs["image"])) == 3
    assert len(set(first.targets.tolist())) == 1
    assert not np.array_equal(first.inputs["image"], other_seed.inputs["image"])
    assert not np.array_equal(first.inputs["audio"], other_seed.inputs["audio"])


def test_every_process_makes_the_same_samples() -> None:
    program = """
import hashlib
import numpy as np
from cutlayer.edge_agent.digits import DigitsDataset, DigitsOptions
from cutlayer.edge_agent.partition import Shard
batch = DigitsDataset(Shard(2, 4), 9, DigitsOptions(alpha=0.5)).batch("train", np.arange(64))
print(hashlib.sha256(batch.inputs["audio"].tobytes() + batch.inputs["image"].tobytes()).hexdigest())
"""
    command = [sys.executable, "-c", program]
    digests = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(digests) == 1


@pytest.mark.parametrize("indices", [[-1], [100_000], [0, 2_874]])
def test_an_index_outside_the_split_is_refused(indices: list[int]) -> None:
    with pytest.raises(IndexError, match="train has 2874 samples"):
        whole(DigitsOptions()).batch("train", np.array(indices))


def test_an_empty_batch_is_empty() -> None:
    batch = whole().batch("test", np.zeros(0, dtype=np.int64))
    assert batch.targets.size == batch.inputs["image"].size == batch.inputs["audio"].size == 0


def test_missing_scikit_learn_gives_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SettingsError, match="scikit-learn, which is not installed") as caught:
        written_digits.__wrapped__()
    assert caught.value.fix == 'pip install "cutlayer[digits]"'


def test_scans_that_scikit_learn_keeps_elsewhere_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    moved = ModuleSpec("sklearn", None, is_package=True)
    moved.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: moved)
    with pytest.raises(SettingsError, match="cannot be read from scikit-learn"):
        written_digits.__wrapped__()


def test_more_shards_than_test_scans_is_refused() -> None:
    with pytest.raises(SettingsError, match="360 samples do not fill 361 shards"):
        DigitsDataset(Shard(0, 361), 0, CLEAN)
