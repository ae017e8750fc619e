"""Data sets by name: what exists is listed, options are checked, and opening one stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.modalities import TokensSpec
from cutlayer.edge_agent.datasets import Dataset, dataset_names, open_dataset
from cutlayer.edge_agent.partition import Shard
from support.small_side import small_manifest

MEGABYTE_KB = 1_024
LIGHT_AGENT = """
import sys
import numpy as np
from cutlayer.edge_agent import losses
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.partition import Shard
from cutlayer.edge_agent.tokenizers import tokenizer_from_spec

dataset = open_dataset("demo:digits", shard=Shard(0, 4))
tokenizers = {
    name: tokenizer_from_spec(
        name, spec, {f"{name}.{part}": np.ones(shape) for part, shape in spec.parameter_shapes(128).items()}
    )
    for name, spec in dataset.modalities.items()
}
for start in range(0, dataset.num_samples("train") - 32, 32):
    for name, raw in dataset.batch("train", np.arange(start, start + 32)).inputs.items():
        tokenizers[name].tokenize(raw)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0], *(name for name in ("torch", "sklearn", "scipy", "timm") if name in sys.modules))
"""


def test_files_need_to_know_what_a_raw_sample_is(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("image,label\na.png,no\n")
    manifest = small_manifest().model_copy(update={"modalities": {"image": TokensSpec(num_tokens=4)}})
    with pytest.raises(SettingsError, match=r"add \[modalities\.image\.raw\]"):
        open_dataset(str(tmp_path), manifest=manifest)


def test_a_data_set_opens_by_name() -> None:
    dataset: Dataset = open_dataset("demo:digits", shard=Shard(1, 4), seed=7, options={"views": 1})
    assert dataset.name == "demo:digits"
    assert dataset.num_samples("train") in {359, 360}
    assert dataset.batch("train", np.arange(2)).targets.shape == (2,)


def test_the_whole_data_set_is_the_default() -> None:
    assert open_dataset("demo:digits").num_samples("test") == 4_320


def test_an_unknown_name_lists_what_exists() -> None:
    with pytest.raises(SettingsError, match="no data set 'demo:digit'") as caught:
        open_dataset("demo:digit")
    assert all(name in caught.value.fix for name in dataset_names())


def test_options_may_be_text() -> None:
    dataset = open_dataset("demo:digits", options={"views": "3", "image_noise": "1.5", "alpha": "0.5"})
    assert dataset.num_samples("train") == 3 * 1_437


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": 2}, "option view = 2"),
        ({"views": 0}, "option views = 0"),
        ({"alpha": "-1"}, "option alpha = '-1'"),
        ({"image_noise": "loud"}, "option image_noise = 'loud'"),
        ({"speech_snr_db": float("nan")}, "option speech_snr_db = nan"),
    ],
)
def test_a_wrong_option_is_named_with_those_that_exist(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        open_dataset("demo:digits", options=options)
    assert "image_noise=" in caught.value.fix
    assert "alpha=None" in caught.value.fix


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(SettingsError, match="seed -1"):
        open_dataset("demo:digits", seed=-1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_agents_data_take_under_100_megabytes_and_no_torch_sklearn_or_scipy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT_AGENT], capture_output=True, text=True, check=True)
    peak_kb, *heavy_modules = done.stdout.split()
    assert heavy_modules == []
    assert int(peak_kb) < 100 * MEGABYTE_KB
