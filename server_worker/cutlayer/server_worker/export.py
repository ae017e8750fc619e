"""From a run's checkpoint to a folder that a user takes home: weights, a loader in plain PyTorch, ONNX, a model card.

model.safetensors    tokenizers, encoder and head; LoRA's additions are in the weights. Heads at agents stay there
config.json          modalities, model and task
load_model.py        loads both with torch, timm and safetensors
model.onnx           the same for all modalities at once, where `onnx` and `onnxscript` are installed
<modality>.vocabulary.json   of texts: for PyPI `tokenizers`
README.md            the model card
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.modalities import AudioSpec, ImageSpec, ModalitySpec, SeriesSpec, TableSpec, TextSpec, TokensSpec
from cutlayer.server_worker.exported_model import CONFIG, WEIGHTS, ExportedModel, load
from cutlayer.server_worker.held_tokenizers import tokenizer_weights
from cutlayer.server_worker.lora import merged_weights
from cutlayer.server_worker.model_builder import BuiltModel
from cutlayer.server_worker.portable_source import portable_source
from cutlayer.server_worker.settings import RunSettings

__all__ = ["Exported", "example_inputs", "export_model", "raw_forms"]

log = logging.getLogger(__name__)

LOADER, ONNX = "load_model.py", "model.onnx"
OPSET = 18
TOLERANCE = 1e-4
_NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        files: Names of the files.
        onnx_difference: Largest difference between the outputs of ONNX and of PyTorch, on random samples; None where
            there is no ONNX.
    """

    folder: Path
    files: tuple[str, ...]
    onnx_difference: float | None


def export_model(
    folder: Path, settings: RunSettings, built: BuiltModel, card: str, *, with_onnx: bool = True
) -> Exported:
    """Write a model.

    Args:
        folder: Made if need be; files of the same names are replaced.
        settings: The run's.
        built: Its model, with the weights that are to be exported.
        card: The model card, Markdown.
        with_onnx: Whether to write ONNX, too.

    Raises:
        SettingsError: When ONNX is wanted and its packages are not installed, or its outputs differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _weights(built)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    (folder / CONFIG).write_text(json.dumps(_config(settings), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / LOADER).write_text(portable_source(raw_forms(settings.modalities, built.width)), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    files = [WEIGHTS, CONFIG, LOADER, "README.md"]
    for name, content in safetensors.torch.load(built.tokenizer_file).items():
        if name.endswith(".vocabulary"):
            (folder / f"{name}.json").write_bytes(content.numpy().tobytes())
            files.append(f"{name}.json")
    difference = None
    if with_onnx:
        difference = _write_onnx(
            folder / ONNX, load(folder), example_inputs(settings.modalities, _NUM_EXAMPLES, width=built.width)
        )
        files.append(ONNX)
    return Exported(folder, tuple(sorted(files)), difference)


def _weights(built: BuiltModel) -> dict[str, Tensor]:
    """Return the client side's weights and the server side's, as they are now."""
    encoder = {
        f"encoder.{name}": tensor.float().contiguous()
        for name, tensor in merged_weights(built.encoder).items()
        if not name.startswith("tokenizers.")
    }
    trained = tokenizer_weights(dict(built.encoder.named_parameters()))
    first = {
        name: tensor
        for name, tensor in safetensors.torch.load(built.tokenizer_file).items()
        if not name.endswith(".vocabulary")
    }
    tokenizers = first | {name: torch.from_numpy(array) for name, array in trained.items()}
    return encoder | {f"tokenizers.{name}": tensor.float().contiguous() for name, tensor in tokenizers.items()}


def _config(settings: RunSettings) -> dict[str, Any]:
    model = settings.model
    return {
        "format": 1,
        "run": settings.run.name,
        "model": {
            "name": model.name,
            "options": model.options,
            "fusion": model.fusion,
            "missing": model.missing,
            "first_block": model.first_block,
        },
        "modalities": {name: _described(spec) for name, spec in settings.modalities.items()},
        "task": settings.task.model_dump(mode="json"),
        "num_outputs": settings.task.num_outputs,
        "head": model.head,
    }


def _described(spec: ModalitySpec) -> dict[str, Any]:
    """Return a specification with what follows from it, for a reader that has no rules of its own."""
    document = spec.model_dump(mode="json") | {
        "grid": list(spec.grid),
        "num_tokens": spec.num_tokens,
        "order": spec.order,
    }
    if isinstance(spec, ImageSpec | AudioSpec):
        document["patch_sides"] = list(spec.patch_sides)
    if isinstance(spec, AudioSpec):
        document["num_samples"] = spec.num_samples
    if isinstance(spec, SeriesSpec):
        document["patch_values"] = spec.patch_values
    return document


def raw_forms(modalities: Mapping[str, ModalitySpec], width: int) -> dict[str, str]:
    """Return what raw samples of each modality look like, for people; B samples, tokens of `width`."""
    return {name: _form(name, spec, width) for name, spec in sorted(modalities.items())}


def _form(name: str, spec: ModalitySpec, width: int) -> str:
    match spec:
        case ImageSpec():
            return f"(B, {spec.height}, {spec.width}, {spec.channels}), uint8 or float from 0 to 1"
        case AudioSpec():
            return f"(B, T) float from -1 to 1, mono at {spec.sample_rate_hz} Hz; {spec.num_samples} samples are used"
        case TextSpec():
            of = "bytes of UTF-8"
            if spec.vocabulary != "bytes":
                tokenizer = f'tokenizers.Tokenizer.from_file("{name}.vocabulary.json")'
                of = f"`{tokenizer}.encode(text, add_special_tokens=False).ids`"
            return f"(B, {spec.num_tokens}) whole numbers: {of}, cut to {spec.num_tokens}, -1 behind a text's end"
        case SeriesSpec():
            return f"(B, T, {spec.channels}) float at {spec.rate_hz:g} Hz, NaN for what is missing"
        case TableSpec():
            return f"(B, {spec.num_tokens}) float: {', '.join(spec.column_names)}; NaN for empty cells"
        case TokensSpec():
            return f"(B, {spec.num_tokens}, {width}) float: what the site's own tokenizer gives"


def example_inputs(
    modalities: Mapping[str, ModalitySpec], num_samples: int, seed: int = 0, *, width: int = 1
) -> dict[str, Tensor]:
    """Return random raw samples of each modality, some of them with gaps where the kind may have some."""
    rng = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(_example(spec, num_samples, rng, width)) for name, spec in sorted(modalities.items())
    }


def _example(spec: ModalitySpec, num_samples: int, rng: np.random.Generator, width: int) -> np.ndarray[Any, Any]:
    match spec:
        case TokensSpec():
            return rng.normal(size=(num_samples, spec.num_tokens, width)).astype(np.float32)
        case ImageSpec():
            return rng.random((num_samples, spec.height, spec.width, spec.channels), np.float32)
        case AudioSpec():
            return rng.uniform(-1, 1, (num_samples, spec.num_samples)).astype(np.float32)
        case TextSpec():
            ids = rng.integers(0, spec.vocabulary_size, (num_samples, spec.num_tokens))
            lengths = rng.integers(1, spec.num_tokens + 1, (num_samples, 1))
            return np.where(np.arange(spec.num_tokens) < lengths, ids, -1)
        case SeriesSpec():
            mean, std = np.asarray(spec.mean), np.asarray(spec.std)
            values = rng.normal(mean, std, (num_samples, spec.num_steps, spec.channels)).astype(np.float32)
            for row, length in enumerate(rng.integers(spec.patch, spec.num_steps + 1, num_samples)):
                values[row, length:] = np.nan
            return values
        case TableSpec():
            mean = np.broadcast_to(np.asarray(spec.mean, np.float64), len(spec.columns))
            std = np.broadcast_to(np.asarray(spec.std, np.float64), len(spec.columns))
            numbers = rng.normal(mean, std, (num_samples, len(spec.columns)))
            places = [rng.integers(0, len(category.values), (num_samples, 1)) for category in spec.categories]
            cells = np.concatenate([numbers, *places], axis=1).astype(np.float32)
            cells[1:, -1] = np.nan
            return cells


class _InOrder(torch.nn.Module):
    """The model with one argument a modality, as a graph needs it."""

    def __init__(self, model: ExportedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs_BC: Tensor = self.model(dict(zip(self.model.names, inputs, strict=True)))
        return outputs_BC


def _write_onnx(path: Path, model: ExportedModel, inputs: Mapping[str, Tensor]) -> float:
    """Write the graph, run it beside the model, and return the largest difference of their outputs."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch's exporter needs
    except ImportError as error:
        raise SettingsError(
            f"writing ONNX needs the package {error.name}", 'pip install "cutlayer[export]", or give --no-onnx'
        ) from error
    arguments = tuple(inputs[name] for name in model.names)
    batch = torch.export.Dim("batch", min=1, max=65_536)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own parts
        program = torch.onnx.export(
            _InOrder(model).eval(),
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(model.names),
            output_names=["features" if model.is_headless else "outputs"],
            dynamic_shapes={"inputs": tuple({0: batch} for _ in arguments)},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: inputs[name].numpy() for name in model.names})
    with torch.no_grad():
        expected = model(inputs).numpy()
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise SettingsError(
            f"{path}: its outputs differ from those of PyTorch by {difference:.2g}",
            "give --no-onnx, and report the model's name and options",
        )
    return difference
