"""What is taken home gives the outputs of what was trained: in plain PyTorch without Cutlayer, and as ONNX."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cutlayer.edge_agent.private_head import PrivateHead
from cutlayer.edge_agent.token_reduction import reduce_present_tokens
from cutlayer.edge_agent.tokenizers import load_tokenizers
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.export import export_model, raw_forms
from cutlayer.server_worker.exported_model import load
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.passes import ForwardItem
from cutlayer.server_worker.run_parts import make_manifest
from cutlayer.server_worker.settings import OptimizerSettings, RunSettings
from support.modalities import EVERY_KIND, raw_samples
from support.small_run import small_settings

NUM_SAMPLES = 5
WITHOUT_CUTLAYER = """
import sys
class Refused:
    def find_spec(self, name, *_):
        if name == "cutlayer" or name.startswith("cutlayer."):
            raise ImportError("no Cutlayer here")
sys.meta_path.insert(0, Refused())
import torch
sys.path.insert(0, sys.argv[1])
from load_model import load
inputs = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(load(sys.argv[1])(inputs), sys.argv[3])
"""


def settings_of(*names: str, **sections: Mapping[str, object]) -> RunSettings:
    document = small_settings(1.0, **sections).model_dump()
    document["modalities"] = {name: EVERY_KIND[name].model_dump() for name in names}
    return RunSettings.model_validate(document)


def trained_a_little(settings: RunSettings) -> BuiltModel:
    """Return a model whose parameters are all other than what a run begins with."""
    built = build(settings, 3)
    with torch.no_grad():
        for parameter in built.encoder.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return built


def split_outputs(settings: RunSettings, built: BuiltModel, raw: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return what the split system gives: the agent's tokenizers, and the worker's engine behind them."""
    tokenizers = load_tokenizers(settings.modalities, built.tokenizer_file)
    tokens, positions = {}, {}
    for name, samples in raw.items():
        features = tokenizers[name].features(samples)
        tokens[name] = tokenizers[name].project(features)
        present_BN = tokenizers[name].presence(features)
        if present_BN is not None:
            draws = [str(row) for row in range(len(samples))]
            tokens[name], positions[name] = reduce_present_tokens(None, tokens[name], present_BN, draws)
    engine = Engine(built.encoder, OptimizerSettings(), seed=0)
    return engine.forward([ForwardItem("all", "eval", tokens, positions)]).outputs["all"]


def as_torch(settings: RunSettings, raw: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """Return raw samples as the exported model takes them: texts as numbers."""
    found = {}
    for name, samples in raw.items():
        if settings.modalities[name].kind == "text":
            samples = np.full((len(samples), 6), -1)
            for row, text in enumerate(raw[name]):
                codes = list(str(text).encode()[:6])
                samples[row, : len(codes)] = codes
        found[name] = torch.from_numpy(samples)
    return found


def raw_of(names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    # Each sample has something in every case: the image, or all tokens.
    return {name: raw_samples(name, NUM_SAMPLES, whole="image" not in names) for name in names}


@pytest.mark.parametrize(
    ("names", "sections"),
    [
        (("audio", "image"), {}),
        (("audio", "image"), {"model": {"fusion": "late"}}),
        (("audio", "image"), {"tuning": {"mode": "lora", "rank": 2}}),
        (("audio", "image", "series", "table", "text"), {}),
        (("image", "text"), {"model": {"missing": "token"}}),
        (("series", "table"), {"model": {"fusion": "late"}}),
    ],
    ids=["early", "late", "lora", "every kind", "learned token", "ragged only"],
)
def test_the_exported_model_gives_the_outputs_of_the_split_system(
    tmp_path: Path, names: tuple[str, ...], sections: dict[str, dict[str, object]]
) -> None:
    settings = settings_of(*names, **sections)
    built = trained_a_little(settings)
    raw = raw_of(names)
    exported = export_model(tmp_path, settings, built, "# A model\n", with_onnx=False)
    assert exported.files == ("README.md", "config.json", "load_model.py", "model.safetensors")
    with torch.no_grad():
        outputs_BC = load(tmp_path)(as_torch(settings, raw)).numpy()
    np.testing.assert_allclose(outputs_BC, split_outputs(settings, built, raw), atol=1e-4)


def test_a_model_of_pairs_embeds_both(tmp_path: Path) -> None:
    document = settings_of("audio", "image", model={"fusion": "late"}).model_dump()
    document["task"] = {"kind": "retrieval", "between": ["image", "audio"], "dimensions": 4}
    settings = RunSettings.model_validate(document)
    built = trained_a_little(settings)
    raw = raw_of(("audio", "image"))
    export_model(tmp_path, settings, built, "", with_onnx=False)
    outputs_BC = load(tmp_path).predict(raw).numpy()  # arrays as they are
    np.testing.assert_allclose(outputs_BC, split_outputs(settings, built, raw), atol=1e-4)


def test_a_model_whose_heads_are_at_the_sites_takes_one_of_theirs(tmp_path: Path) -> None:
    settings = settings_of("audio", "image", model={"head": "agent"})
    built = trained_a_little(settings)
    manifest, raw = make_manifest(settings, built, run_id="small-0"), raw_of(("audio", "image"))
    head = PrivateHead(manifest, "site/0", 8, tmp_path / "head.safetensors")
    export_model(tmp_path / "model", settings, built, "", with_onnx=False)
    features_BD = split_outputs(settings, built, raw)
    whole = load(tmp_path / "model", head=tmp_path / "head.safetensors")
    with torch.no_grad():
        np.testing.assert_allclose(load(tmp_path / "model")(as_torch(settings, raw)).numpy(), features_BD, atol=1e-4)
        outputs_BC = whole(as_torch(settings, raw)).numpy()
    np.testing.assert_allclose(outputs_BC, head.outputs(features_BD), atol=1e-4)
    assert whole.predict(as_torch(settings, raw)).sum(dim=1).numpy() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="head=FILE"):
        load(tmp_path / "model").predict(as_torch(settings, raw))


def test_a_head_has_no_place_in_a_model_that_has_one(tmp_path: Path) -> None:
    settings = settings_of("image")
    export_model(tmp_path, settings, build(settings, 3), "", with_onnx=False)
    with pytest.raises(ValueError, match="a head of its own"):
        load(tmp_path, head=tmp_path / "model.safetensors")


def test_a_modality_may_be_left_out(tmp_path: Path) -> None:
    settings = settings_of("audio", "image")
    built = trained_a_little(settings)
    export_model(tmp_path, settings, built, "", with_onnx=False)
    raw = {"image": raw_samples("image", NUM_SAMPLES)}
    model = load(tmp_path)
    with torch.no_grad():
        outputs_BC = model(as_torch(settings, raw)).numpy()
    np.testing.assert_allclose(outputs_BC, split_outputs(settings, built, raw), atol=1e-4)
    with pytest.raises(ValueError, match="none of"):
        model({"smell": torch.zeros(1)})


@pytest.mark.slow
@pytest.mark.parametrize("names", [("audio", "image"), ("image", "series", "table", "text")])
def test_the_folder_loads_without_cutlayer(tmp_path: Path, names: tuple[str, ...]) -> None:
    settings = settings_of(*names)
    built = trained_a_little(settings)
    folder, raw = tmp_path / "model", raw_of(names)
    export_model(folder, settings, built, "", with_onnx=False)
    torch.save(as_torch(settings, raw), tmp_path / "inputs.pt")
    files = [str(folder), str(tmp_path / "inputs.pt"), str(tmp_path / "out.pt")]
    command = [sys.executable, "-c", WITHOUT_CUTLAYER, *files]
    subprocess.run(command, check=True, timeout=300)
    outputs_BC = torch.load(tmp_path / "out.pt").numpy()
    np.testing.assert_allclose(outputs_BC, split_outputs(settings, built, raw), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "model"),
    [
        (("audio", "image", "series", "table", "text"), {}),
        (("image", "text"), {"fusion": "late"}),
        (("image", "text"), {"missing": "token"}),
    ],
    ids=["every kind", "late", "learned token"],
)
def test_onnx_gives_the_same_for_any_number_of_samples(
    tmp_path: Path, names: tuple[str, ...], model: dict[str, object]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    settings = settings_of(*names, model=model)
    built = trained_a_little(settings)
    exported = export_model(tmp_path, settings, built, "")
    assert exported.onnx_difference is not None
    assert exported.onnx_difference < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for num_samples in (1, NUM_SAMPLES):
        raw = {name: array[:num_samples] for name, array in raw_of(names).items()}
        inputs = {name: tensor.numpy() for name, tensor in as_torch(settings, raw).items()}
        inputs = {name: array.astype(np.float32) if name == "image" else array for name, array in inputs.items()}
        inputs["image"] = inputs["image"] / np.float32(255)
        inputs = {name: array.astype(np.float32) if name == "table" else array for name, array in inputs.items()}
        (outputs_BC,) = session.run(None, inputs)
        np.testing.assert_allclose(outputs_BC, split_outputs(settings, built, raw), atol=1e-4)


def test_trained_tokenizers_are_those_of_the_encoder(tmp_path: Path) -> None:
    settings = settings_of("audio", "image", tokenizers={"mode": "trainable"}, activations={"mode": "every-step"})
    built = build(settings, 3)
    assert built.encoder.tokenizers is not None
    with torch.no_grad():
        for parameter in built.encoder.tokenizers.parameters():
            parameter.add_(1.0)
    export_model(tmp_path, settings, built, "", with_onnx=False)
    found = load(tmp_path).tokenizers["image_tokens"].get_parameter("bias")
    torch.testing.assert_close(found.detach(), torch.ones_like(found))


def test_predictions_are_in_the_users_terms(tmp_path: Path) -> None:
    raw = {"image": raw_samples("image", NUM_SAMPLES)}
    tasks: dict[str, dict[str, object]] = {
        "classification": {"classes": ["a", "b", "c"]},
        "multi-label": {"classes": ["a", "b", "c"]},
        "regression": {"targets": [{"name": "age", "mean": 40.0, "std": 10.0, "unit": "years"}]},
    }
    for kind, task in tasks.items():
        document = settings_of("image").model_dump()
        document["task"] = {"kind": kind, **task}
        settings = RunSettings.model_validate(document)
        built = trained_a_little(settings)
        export_model(tmp_path / kind, settings, built, "", with_onnx=False)
        predicted = load(tmp_path / kind).predict(as_torch(settings, raw)).numpy()
        outputs_BC = split_outputs(settings, built, raw)
        if kind == "classification":
            np.testing.assert_allclose(predicted.sum(axis=1), 1.0, atol=1e-5)
            assert (predicted.argmax(axis=1) == outputs_BC.argmax(axis=1)).all()
        elif kind == "multi-label":
            np.testing.assert_allclose(predicted, 1 / (1 + np.exp(-outputs_BC)), atol=1e-5)
        else:
            np.testing.assert_allclose(predicted, 40 + 10 * outputs_BC, atol=1e-3)


def test_the_folder_says_what_goes_in() -> None:
    forms = raw_forms(EVERY_KIND, 16)
    assert forms["image"] == "(B, 4, 4, 1), uint8 or float from 0 to 1"
    assert forms["table"] == "(B, 4) float: age, pulse, sex, ward; NaN for empty cells"
    assert json.dumps(forms)
