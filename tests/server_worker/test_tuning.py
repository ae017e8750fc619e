"""Which parameters each mode trains, what it leaves alone, and what its graph keeps in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from cutlayer.broker.errors import SettingsError
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.lora import merged_weights
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.run_parts import make_engine
from cutlayer.server_worker.timm_import import create_model
from cutlayer.server_worker.tuning import goes_back_through_all
from server_worker.small_model import OPTIONS, output_gradient, small_settings, train_item

MODES: dict[str, dict[str, object]] = {
    "full": {"mode": "full"},
    "last": {"mode": "last", "blocks": 1},
    "lora": {"mode": "lora", "rank": 4},
    "frozen": {"mode": "frozen"},
}
HEAD = {"head.weight", "head.bias"}
AUDIO = {f"embeddings.audio_tokens.{part}" for part in ("modality", "position", "prefix")}
IMAGE = {f"embeddings.image_tokens.{part}" for part in ("modality", "position", "prefix")}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint of the small ViT, which has seen images."""
    torch.manual_seed(1)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(create_model("vit_tiny_patch16_224", **OPTIONS).state_dict(), path)
    return path


def tuned(tuning: Mapping[str, object], *, seed: int = 0, weights: Path | None = None) -> BuiltModel:
    return build(small_settings(tuning=tuning, model={"weights": weights}), seed)


def engine_of(built: BuiltModel, tuning: Mapping[str, object]) -> Engine:
    return make_engine(small_settings(tuning=tuning, optimizer={"lr": 0.01, "warmup_ratio": 0.0}), built)


def trained(built: BuiltModel) -> set[str]:
    return {name for name, value in built.encoder.named_parameters() if value.requires_grad}


def train(engine: Engine, num_windows: int = 3) -> None:
    for window in range(num_windows):
        forwarded = engine.forward([train_item(window)])
        assert forwarded.group_id is not None
        gradients = {
            key: output_gradient(out, torch.arange(len(out)).numpy() % 3) for key, out in forwarded.outputs.items()
        }
        engine.backward(forwarded.group_id, gradients, last=True)
        assert engine.commit(4, None).applied


def test_full_trains_everything(weights: Path) -> None:
    built = tuned({"mode": "full"}, weights=weights)
    assert trained(built) == {name for name, _ in built.encoder.named_parameters()}
    assert built.num_trained_parameters == built.num_parameters


def test_last_trains_the_last_blocks_and_what_is_behind_them(weights: Path) -> None:
    names = trained(tuned({"mode": "last", "blocks": 1}, weights=weights))
    assert names == HEAD | AUDIO | {"vit.norm.weight", "vit.norm.bias"} | {n for n in names if "vit.blocks.1." in n}
    assert sum("vit.blocks.1." in name for name in names) == 12


def test_last_with_all_blocks_leaves_what_stands_before_them(weights: Path) -> None:
    names = trained(tuned({"mode": "last", "blocks": 2}, weights=weights))
    assert sum("vit.blocks." in name for name in names) == 24
    assert not names & IMAGE


def test_lora_trains_its_additions_and_the_head(weights: Path) -> None:
    built = tuned({"mode": "lora", "rank": 4}, weights=weights)
    additions = {
        f"vit.blocks.{block}.attn.{target}.lora_{part}"
        for block in (0, 1)
        for target in ("qkv", "proj")
        for part in "ab"
    }
    assert trained(built) == HEAD | AUDIO | additions


def test_lora_takes_the_multilayer_perceptron_too() -> None:
    names = trained(tuned({"mode": "lora", "targets": ["fc1", "fc2"], "embeddings": "none"}))
    assert {name.split(".")[-2] for name in names - HEAD} == {"fc1", "fc2"}


def test_frozen_trains_the_head_and_what_the_checkpoint_did_not_know(weights: Path) -> None:
    assert trained(tuned({"mode": "frozen"}, weights=weights)) == HEAD | AUDIO


def test_without_weights_all_modalities_are_new() -> None:
    assert trained(tuned({"mode": "frozen"})) == HEAD | AUDIO | IMAGE


@pytest.mark.parametrize(("embeddings", "names"), [("all", HEAD | AUDIO | IMAGE), ("none", HEAD)])
def test_embeddings_may_all_train_or_none(weights: Path, embeddings: str, names: set[str]) -> None:
    assert trained(tuned({"mode": "frozen", "embeddings": embeddings}, weights=weights)) == names


def test_a_frozen_embedding_that_no_checkpoint_has_is_not_in_the_way(weights: Path) -> None:
    values = dict(tuned({"mode": "frozen"}, weights=weights).encoder.named_parameters())
    assert not values["embeddings.image_tokens.modality"].any()
    assert values["embeddings.audio_tokens.modality"].any()


@pytest.mark.parametrize("mode", MODES)
def test_all_modes_begin_with_the_same_model(mode: str) -> None:
    built, whole = tuned(MODES[mode]), tuned({})
    assert built.tokenizer_file == whole.tokenizer_file
    assert built.num_parameters == whole.num_parameters
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(merged_weights(built.encoder)[name], value), name


@pytest.mark.parametrize("mode", MODES)
def test_counts_are_those_of_the_parameters(mode: str) -> None:
    built = tuned(MODES[mode])
    values = dict(built.encoder.named_parameters())
    assert built.num_trained_parameters == sum(values[name].numel() for name in trained(built))
    assert built.num_parameters == sum(value.numel() for name, value in values.items() if "lora_" not in name)


@pytest.mark.parametrize("mode", MODES)
def test_training_leaves_what_is_frozen_bit_for_bit(mode: str) -> None:
    built = tuned(MODES[mode])
    before = {name: value.detach().clone() for name, value in built.encoder.named_parameters()}
    engine = engine_of(built, MODES[mode])
    train(engine)
    changed = {name for name, value in engine.state_dict().weights.items() if not torch.equal(value, before[name])}
    assert changed == trained(built)


@pytest.mark.parametrize("mode", MODES)
def test_the_optimizer_and_a_pools_sums_hold_what_trains_and_nothing_else(mode: str) -> None:
    built = tuned(MODES[mode])
    engine = engine_of(built, MODES[mode])
    assert sum(total.numel() for total in engine.gradient_sums()) == built.num_trained_parameters
    train(engine, 1)
    state = engine.state_dict()
    assert {path.rpartition("/")[0] for path in state.optimizer} == trained(built)
    assert state.weights.keys() == dict(built.encoder.named_parameters()).keys()


@pytest.mark.parametrize("mode", MODES)
def test_a_snapshot_goes_on_as_the_engine_does(mode: str) -> None:
    engine = engine_of(tuned(MODES[mode]), MODES[mode])
    train(engine, 2)
    again = engine_of(tuned(MODES[mode], seed=5), MODES[mode])
    again.load_state_dict(engine.state_dict())
    for one in (engine, again):
        train(one, 1)
    assert engine.fingerprint() == again.fingerprint()
    assert engine.parameters_digest() == again.parameters_digest()


def test_a_fingerprint_tells_of_frozen_weights_too() -> None:
    engine, other = (engine_of(tuned(MODES["frozen"], seed=seed), MODES["frozen"]) for seed in (0, 0))
    assert engine.fingerprint() == other.fingerprint()
    state = other.state_dict()
    state.weights["vit.blocks.0.attn.qkv.weight"][0, 0] += 1.0
    other.load_state_dict(state)
    assert engine.fingerprint() != other.fingerprint()


def test_a_snapshot_of_another_mode_is_refused() -> None:
    engine = engine_of(tuned(MODES["full"]), MODES["full"])
    train(engine, 1)
    with pytest.raises(ValueError, match=r"lora_a' is in only one of the two"):
        engine_of(tuned(MODES["lora"]), MODES["lora"]).load_state_dict(engine.state_dict())
    with pytest.raises(ValueError, match="belongs to no parameter of this model"):
        engine_of(tuned(MODES["last"]), MODES["last"]).load_state_dict(engine.state_dict())


def test_merged_weights_give_the_same_outputs() -> None:
    built = tuned(MODES["lora"] | {"targets": ["qkv", "proj", "fc1", "fc2"]})
    engine = engine_of(built, MODES["lora"])
    train(engine)
    tuned_outputs = engine.forward([train_item(9, mode="eval")]).outputs[9]
    whole = tuned({})
    whole.encoder.load_state_dict(merged_weights(built.encoder))
    outputs = engine_of(whole, {}).forward([train_item(9, mode="eval")]).outputs[9]
    assert abs(outputs - tuned_outputs).max() < 1e-5
    untrained = engine_of(tuned({}), {}).forward([train_item(9, mode="eval")]).outputs[9]
    assert abs(outputs - untrained).max() > 1e-2


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """Count what autograd keeps for a backward pass: the bytes of each tensor, weights apart."""
    counted: list[int] = []
    seen: set[int] = set()

    def pack(value: Tensor) -> Tensor:
        if not value.is_leaf and value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            counted.append(value.untyped_storage().nbytes())
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield counted


def graph_bytes(tuning: dict[str, object], depth: int, **tokenizers: object) -> int:
    options = OPTIONS | {"depth": depth}
    sections: dict[str, Any] = {"tuning": tuning, "model": {"options": options}, "tokenizers": tokenizers}
    if tokenizers:
        sections["activations"] = {"mode": "every-step"}
    settings = small_settings(**sections)
    engine = make_engine(settings, build(settings, 0))
    with saved_bytes() as counted:
        engine.forward([train_item(0)])
    return sum(counted)


def test_frozen_blocks_before_the_trained_ones_are_in_no_graph() -> None:
    last = {"mode": "last", "blocks": 1, "embeddings": "none"}
    assert graph_bytes(last, depth=6) == graph_bytes(last, depth=2)
    assert graph_bytes({"mode": "full"}, depth=6) > 2 * graph_bytes({"mode": "full"}, depth=2)


def test_a_frozen_encoder_has_a_graph_of_the_head_alone() -> None:
    frozen = graph_bytes({"mode": "frozen", "embeddings": "none"}, depth=6)
    assert frozen < graph_bytes({"mode": "full"}, depth=6) / 100


@pytest.mark.parametrize(
    ("tuning", "tokenizers"),
    [({"mode": "frozen"}, {}), ({"mode": "frozen", "embeddings": "none"}, {"mode": "trainable"})],
    ids=["trained embeddings", "trained tokenizers"],
)
def test_what_trains_before_the_blocks_brings_their_graphs_back(
    tuning: dict[str, object], tokenizers: dict[str, object]
) -> None:
    assert graph_bytes(tuning, 6, **tokenizers) > 2 * graph_bytes(tuning, 2, **tokenizers)


@pytest.mark.parametrize(
    ("tuning", "goes_back"),
    [
        ({"mode": "full"}, True),
        ({"mode": "lora", "embeddings": "none"}, True),
        ({"mode": "frozen"}, True),
        ({"mode": "frozen", "embeddings": "none"}, False),
        ({"mode": "last", "embeddings": "none"}, False),
        ({"mode": "last", "blocks": 2, "embeddings": "none"}, True),
    ],
    ids=str,
)
def test_whether_gradients_go_back_through_all_blocks_is_known(tuning: dict[str, object], goes_back: bool) -> None:
    assert goes_back_through_all(tuned(tuning).encoder) is goes_back


@pytest.mark.parametrize(
    ("tuning", "name", "problem", "fix"),
    [
        ({"mode": "last", "blocks": 3}, None, "blocks = 3, and the encoder has 2", "choose 1 to 2"),
        ({"mode": "lora", "rank": 64}, None, "rank = 64 is over what attn.qkv of 32 x 96 can have", "choose 1 to 32"),
        (
            {"mode": "lora"},
            "vit_base_patch16_xp_224",
            "a ParallelScalingBlock of this encoder has no such linear map",
            "leave 'qkv' out, or set mode to last",
        ),
    ],
)
def test_a_tuning_that_the_encoder_cannot_have_is_explained(
    tuning: dict[str, object], name: str | None, problem: str, fix: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        build(small_settings(tuning=tuning, model={} if name is None else {"name": name}), 0)
    assert problem in caught.value.problem
    assert fix in caught.value.fix
