"""What a worker says that it can infer, it can: each sentence of the block that begins a run, done.

Axes: B samples, N tokens, P values of a patch, D width, C outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from cutlayer.broker.tasks import TaskSpec
from cutlayer.broker.tensors import decode_tensor, encode_tensor
from cutlayer.edge_agent.losses import task_from_spec
from cutlayer.edge_agent.tokenizers import Tokenizer, load_tokenizers
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.settings import RunSettings
from support.small_run import AUDIO, IMAGE, small_settings

MODALITIES: dict[str, dict[str, object]] = {
    "audio": AUDIO.model_dump(),
    "image": IMAGE.model_dump(),
    "notes": {"kind": "text", "num_tokens": 8},
    "vitals": {"kind": "table", "columns": ["age", "weight"], "mean": [50.0, 70.0], "std": [20.0, 15.0]},
}
SAMPLES = 6


def settings_of(**sections: Any) -> RunSettings:
    document = small_settings().model_dump(mode="json")
    return RunSettings.model_validate({**document, "modalities": MODALITIES, **sections})


@pytest.fixture(scope="module")
def client_side() -> tuple[dict[str, Tokenizer], dict[str, NDArray[Any]]]:
    """Return an agent's tokenizers, and the weights of them that the server holds."""
    settings = settings_of()
    file = build(settings, 0).tokenizer_file
    return load_tokenizers(settings.modalities, file), safetensors.numpy.load(file)


def arrived(tokenizer: Tokenizer, raw: NDArray[Any], codec: str) -> NDArray[np.float32]:
    """Return a modality's activations as the worker has them, (B, N, D)."""
    return decode_tensor(encode_tensor(codec, tokenizer.tokenize(raw)), what="activations")


def raw_of(name: str) -> NDArray[Any]:
    rng = np.random.default_rng(3)
    if name == "image":
        return rng.integers(0, 256, (SAMPLES, 4, 4, 1)).astype(np.uint8)
    return rng.uniform(-1, 1, (SAMPLES, AUDIO.num_samples)).astype(np.float32)


@pytest.mark.parametrize("name", ["image", "audio"])
@pytest.mark.parametrize(("codec", "error"), [("identity", 1e-4), ("int8+zstd", 0.03)])
def test_patches_are_solved_for(
    client_side: tuple[dict[str, Tokenizer], dict[str, NDArray[Any]]], name: str, codec: str, error: float
) -> None:
    tokenizers, weights = client_side
    tokens_BND = arrived(tokenizers[name], raw_of(name), codec)
    rows = (tokens_BND - weights[f"{name}.bias"]).reshape(-1, tokens_BND.shape[-1])
    found, *_ = np.linalg.lstsq(weights[f"{name}.weight"].T, rows.T, rcond=None)
    wanted = tokenizers[name].features(raw_of(name))
    assert np.linalg.norm(found.T.reshape(wanted.shape) - wanted) < error * np.linalg.norm(wanted)


@pytest.mark.parametrize("codec", ["identity", "int8+zstd", "int4"])
def test_words_are_looked_up(client_side: tuple[dict[str, Tokenizer], dict[str, NDArray[Any]]], codec: str) -> None:
    tokenizers, weights = client_side
    texts = np.array(["fever", "no cough"], dtype=object)
    tokens_BND = arrived(tokenizers["notes"], texts, codec)
    distances_BNV = ((tokens_BND[:, :, None] - weights["notes.embedding"]) ** 2).sum(-1)
    found = [
        bytes(row[: len(text)].astype(np.uint8).tolist())
        for row, text in zip(distances_BNV.argmin(-1), texts, strict=True)
    ]
    assert found == [text.encode() for text in texts]


@pytest.mark.parametrize(("codec", "error"), [("identity", 1e-4), ("int8+zstd", 0.1)])
def test_cells_are_divided_out(
    client_side: tuple[dict[str, Tokenizer], dict[str, NDArray[Any]]], codec: str, error: float
) -> None:
    tokenizers, weights = client_side
    cells_BF = np.array([[63.0, 81.5], [8.0, 28.0]])
    tokens_BFD = arrived(tokenizers["vitals"], cells_BF, codec) - weights["vitals.bias"]
    vectors_FD = weights["vitals.weight"]
    found_BF = (tokens_BFD * vectors_FD).sum(-1) / (vectors_FD**2).sum(-1)
    np.testing.assert_allclose(found_BF, (cells_BF - [50.0, 70.0]) / [20.0, 15.0], atol=error)


def gradients_of(
    task: dict[str, object], targets: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32], TaskSpec]:
    """Return outputs, and the output gradients as the worker has them, both (B, C)."""
    spec = settings_of(task=task).task
    rng = np.random.default_rng(5)
    outputs_BC = rng.normal(size=(len(targets), spec.num_outputs)).astype(np.float32)
    gradient_BC = task_from_spec(spec).loss_and_gradient(outputs_BC, targets).gradient_BC
    return outputs_BC, decode_tensor(encode_tensor("fp16", gradient_BC), what="output gradients"), spec


def test_a_label_is_where_the_gradient_is_negative() -> None:
    labels_B = np.array([2, 0, 1, 1, 2])
    _, gradient_BC, _ = gradients_of({"classes": ["a", "b", "c"]}, labels_B)
    assert ((gradient_BC < 0) == (np.arange(3) == labels_B[:, None])).all()


def test_labels_are_where_the_gradients_are_negative() -> None:
    labels_BC = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=np.float32)
    _, gradient_BC, _ = gradients_of({"kind": "multi-label", "classes": ["a", "b", "c"]}, labels_BC)
    assert ((gradient_BC < 0) == (labels_BC == 1)).all()


def test_a_target_is_the_output_less_the_gradient() -> None:
    target = {"name": "age", "mean": 50.0, "std": 20.0}
    targets_BC = np.array([[63.0], [8.0], [50.0]], dtype=np.float32)
    outputs_BC, gradient_BC, _ = gradients_of({"kind": "regression", "targets": [target]}, targets_BC)
    scale = gradient_BC[0, 0] / (
        outputs_BC[0, 0] - (63.0 - 50.0) / 20.0
    )  # the loss's own factor, which the server knows
    np.testing.assert_allclose(50.0 + 20.0 * (outputs_BC - gradient_BC / scale), targets_BC, atol=0.1)
