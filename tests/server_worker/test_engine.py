from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutlayer.broker.learning_rate import learning_rate_factor
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.model_builder import BuiltModel
from cutlayer.server_worker.passes import ForwardItem
from cutlayer.server_worker.settings import OptimizerSettings
from cutlayer.server_worker.whole_model import WholeModel
from server_worker.small_model import (
    CLASSES,
    Arrays,
    gradients_of,
    group_of,
    output_gradient,
    random_tokens,
    run_window,
    small_engine,
    small_model,
    small_settings,
    train_item,
)

# Axes: b samples of a microbatch, B batch, N tokens, P values of a patch, C classes.

NUM_STEPS = 20
NUM_SAMPLES = 12
PATCH_VALUES = {"audio": (8, 16), "image": (16, 4)}


def batches() -> list[tuple[Arrays, NDArray[np.int64]]]:
    """Patches (B, N, P) by modality and labels (B,), for each step."""
    generator = np.random.default_rng(0)
    return [
        (
            {
                name: generator.standard_normal((NUM_SAMPLES, *shape), dtype=np.float32)
                for name, shape in PATCH_VALUES.items()
            },
            generator.integers(CLASSES, size=NUM_SAMPLES),
        )
        for _ in range(NUM_STEPS)
    ]


def train_whole(built: BuiltModel, settings: OptimizerSettings) -> dict[str, Tensor]:
    """Plain torch, as anybody would write it."""
    whole = WholeModel(copy.deepcopy(built.encoder), built.tokenizer_file, small_settings().modalities)
    spared = [p for name, p in whole.encoder.named_parameters() if p.ndim < 2 or name.startswith("embeddings.")]
    decayed = [p for name, p in whole.encoder.named_parameters() if p.ndim > 1 and not name.startswith("embeddings.")]
    groups = [{"params": spared, "weight_decay": 0.0}, {"params": decayed, "weight_decay": settings.weight_decay}]
    optimizer: torch.optim.Optimizer
    if settings.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)
    else:
        optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(
            (step + 1) / NUM_STEPS, warmup_ratio=settings.warmup_ratio, min_lr_ratio=settings.min_lr_ratio
        ),
    )
    dtype = whole.encoder.any_parameter.dtype
    for patches, labels_B in batches():
        logits_BC = whole({name: torch.from_numpy(values).to(dtype) for name, values in patches.items()})
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits_BC, torch.from_numpy(labels_B))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(whole.encoder.parameters(), settings.clip_norm or np.inf)
        optimizer.step()
        scheduler.step()
    return whole.encoder.state_dict()


def train_split(
    built: BuiltModel, settings: OptimizerSettings, num_pieces: int, *, together: bool
) -> dict[str, Tensor]:
    """The same batches, tokenized outside and cut into microbatches that go forward together or one by one."""
    whole = WholeModel(built.encoder, built.tokenizer_file, small_settings().modalities)
    engine = Engine(copy.deepcopy(built.encoder), settings, seed=0)
    dtype = built.encoder.any_parameter.dtype
    for step, (patches, labels_B) in enumerate(batches()):
        with torch.no_grad():
            tokens = {
                name: whole.tokenizers[f"{name}_tokens"](torch.from_numpy(values).to(dtype)).numpy()
                for name, values in patches.items()
            }
        rows = np.array_split(np.arange(NUM_SAMPLES), num_pieces)
        items = [
            ForwardItem((step, piece), "train", {name: values[rows_b] for name, values in tokens.items()})
            for piece, rows_b in enumerate(rows)
        ]
        for group in [items] if together else [[item] for item in items]:
            forwarded = engine.forward(group)
            gradients = {
                item.key: output_gradient(forwarded.outputs[item.key], labels_B[rows[items.index(item)]])
                for item in group
            }
            engine.backward(group_of(forwarded), gradients, last=True)
        engine.commit(NUM_SAMPLES, (step + 1) / NUM_STEPS)
    return engine.state_dict().weights


@pytest.mark.parametrize(("num_pieces", "together"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize(
    ("name", "dtype", "lr"), [("sgd", "float32", 0.05), ("adamw", "float64", 1e-3)], ids=["sgd", "adamw"]
)
def test_split_training_equals_whole_training(
    name: str, dtype: str, lr: float, num_pieces: int, together: bool
) -> None:
    settings = OptimizerSettings.model_validate({"name": name, "lr": lr, "clip_norm": 1.0})
    built = small_model(dtype=dtype)
    whole = train_whole(built, settings)
    split = train_split(built, settings, num_pieces, together=together)
    moved = max(float((whole[key] - value).abs().max()) for key, value in built.encoder.state_dict().items())
    assert moved > 5e-3
    for key, value in whole.items():
        assert (split[key] - value).norm() <= 1e-5 * value.norm(), key


def test_an_old_graph_gives_the_gradient_at_its_own_weights() -> None:
    engine, other = small_engine(), small_engine()
    late, early = train_item("late"), train_item("early")
    waiting = engine.forward([late])
    run_window(engine, [early])
    assert engine.version == 1
    assert waiting.version == 0
    engine.backward(group_of(waiting), gradients_of(waiting), last=True)
    fresh = other.forward([late])
    other.backward(group_of(fresh), gradients_of(fresh), last=True)
    for one, wanted in zip(engine.gradient_sums(), other.gradient_sums(), strict=True):
        assert torch.equal(one, wanted)


def test_an_old_version_is_freed_with_its_last_graph() -> None:
    engine = small_engine()
    waiting = engine.forward([train_item(1)])
    old = weakref.ref(next(iter(engine._parameters.newest.values())))
    run_window(engine, [train_item(2)])
    gc.collect()
    assert old() is not None
    engine.release(group_of(waiting))
    gc.collect()
    assert old() is None


def test_gradients_may_come_in_pieces_and_in_any_order() -> None:
    items = [train_item(key) for key in range(3)]
    whole, pieces = small_engine(), small_engine()
    at_once = whole.forward(items)
    whole.backward(group_of(at_once), gradients_of(at_once), last=True)
    one_by_one = pieces.forward(items)
    gradients = gradients_of(one_by_one)
    for key in (2, 0, 1):
        pieces.backward(group_of(one_by_one), {key: gradients[key]}, last=key == 1)
    for one, wanted in zip(pieces.gradient_sums(), whole.gradient_sums(), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5)


def test_microbatches_may_differ_in_size() -> None:
    engine = small_engine()
    items = [train_item("five", 5), train_item("two", 2)]
    forwarded = engine.forward(items)
    assert {key: output.shape for key, output in forwarded.outputs.items()} == {
        "five": (5, CLASSES),
        "two": (2, CLASSES),
    }
    alone = engine.forward([ForwardItem("two", "eval", items[1].tokens)])
    np.testing.assert_allclose(forwarded.outputs["two"], alone.outputs["two"], rtol=1e-4, atol=1e-5)


def test_evaluation_keeps_no_graph() -> None:
    engine = small_engine(modality_dropout=0.5)
    forwarded = engine.forward([train_item(1, mode="eval")])
    assert forwarded.group_id is None
    assert engine.num_live_graphs == 0


def test_live_graphs_and_samples_are_counted() -> None:
    engine = small_engine()
    first = engine.forward([train_item(1, 5), train_item(2, 3)])
    second = engine.forward([train_item(3, 2)])
    assert (engine.num_live_graphs, engine.live_samples) == (2, 10)
    engine.backward(group_of(first), gradients_of(first), last=True)
    engine.release(group_of(second))
    engine.release(group_of(second))
    assert (engine.num_live_graphs, engine.live_samples) == (0, 0)


def test_activations_from_the_wire_may_be_read_only() -> None:
    tokens = random_tokens(2)
    for array in tokens.values():
        array.flags.writeable = False
    assert small_engine().forward([ForwardItem(1, "train", tokens)]).outputs[1].dtype == np.float32


def test_modality_dropout_does_not_depend_on_the_company() -> None:
    items = [train_item(key, 16) for key in range(4)]
    together = small_engine(modality_dropout=0.4).forward(items)
    alone = small_engine(modality_dropout=0.4).forward([items[2]])
    kept = small_engine().forward([items[2]])
    np.testing.assert_allclose(together.outputs[2], alone.outputs[2], rtol=1e-4, atol=1e-5)
    assert not np.allclose(alone.outputs[2], kept.outputs[2], rtol=1e-2)


def test_a_modality_may_be_absent() -> None:
    engine = small_engine(modality_dropout=0.4)
    before = engine.state_dict().weights
    run_window(engine, [ForwardItem(1, "train", random_tokens(4, names=("image",)))])
    after = engine.state_dict().weights
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "embeddings.image_tokens.prefix" in changed
    assert not any(name.startswith("embeddings.audio_tokens") for name in changed)


def test_spoiled_activations_hurt_nobody_else() -> None:
    engine, clean = small_engine(), small_engine()
    good, bad = train_item("good"), train_item("bad")
    bad.tokens["image"][0, 3, 5] = np.nan
    forwarded = engine.forward([bad, good])
    assert forwarded.refused == ("bad",)
    assert list(forwarded.outputs) == ["good"]
    engine.backward(group_of(forwarded), gradients_of(forwarded), last=True)
    alone = clean.forward([good])
    clean.backward(group_of(alone), gradients_of(alone), last=True)
    for one, wanted in zip(engine.gradient_sums(), clean.gradient_sums(), strict=True):
        assert torch.equal(one, wanted)


def test_a_group_of_spoiled_activations_has_no_graph() -> None:
    engine, bad = small_engine(), train_item("bad")
    bad.tokens["audio"][:] = np.inf
    assert engine.forward([bad]).group_id is None
    assert engine.num_live_graphs == 0


def test_a_gradient_that_is_not_finite_is_refused_alone() -> None:
    engine = small_engine()
    forwarded = engine.forward([train_item(1), train_item(2)])
    gradients = gradients_of(forwarded)
    gradients[1][0, 0] = np.nan
    result = engine.backward(group_of(forwarded), gradients, last=True)
    assert (result.accepted, result.refused) == ((2,), (1,))
    assert engine.commit(4, None).applied


def test_a_gradient_that_overflows_leaves_the_window_alone() -> None:
    engine = small_engine()
    forwarded = engine.forward([train_item(1)])
    engine.backward(group_of(forwarded), gradients_of(forwarded), last=False)
    before = engine.gradient_sums()
    forwarded = engine.forward([train_item(2)])
    huge = np.full((4, CLASSES), 3e38, np.float32)
    assert engine.backward(group_of(forwarded), {2: huge}, last=True).refused == (2,)
    assert all(torch.equal(one, other) for one, other in zip(engine.gradient_sums(), before, strict=True))


def test_a_window_that_is_not_finite_is_without_effect() -> None:
    engine = small_engine()
    before = engine.parameters_digest()
    engine.set_gradient_sums([torch.full_like(total, torch.nan) for total in engine.gradient_sums()])
    result = engine.commit(4, None)
    assert (result.applied, result.version) == (False, 0)
    assert engine.parameters_digest() == before


def test_a_gradient_counts_once() -> None:
    engine = small_engine()
    forwarded = engine.forward([train_item(1)])
    engine.backward(group_of(forwarded), gradients_of(forwarded), last=False)
    with pytest.raises(ValueError, match="waits for no gradient of 1"):
        engine.backward(group_of(forwarded), gradients_of(forwarded), last=False)


def test_a_group_that_is_done_takes_no_gradient() -> None:
    engine = small_engine()
    forwarded = engine.forward([train_item(1)])
    engine.release(group_of(forwarded))
    with pytest.raises(KeyError):
        engine.backward(group_of(forwarded), gradients_of(forwarded), last=True)


def test_a_gradient_of_another_shape_is_refused() -> None:
    engine = small_engine()
    forwarded = engine.forward([train_item(1, 4)])
    with pytest.raises(ValueError, match=r"\(3, 3\), its outputs are \(4, 3\)"):
        engine.backward(group_of(forwarded), {1: np.zeros((3, CLASSES), np.float32)}, last=True)
    assert engine.num_live_graphs == 1


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        ([], "at least one"),
        ([ForwardItem(1, "train", {})], "at least one"),
        ([train_item(1), train_item(2, mode="eval")], "one mode"),
        ([train_item(1), train_item(1)], "distinct keys"),
        ([train_item(1), ForwardItem(2, "train", random_tokens(2, names=("image",)))], "same modalities"),
        ([ForwardItem(1, "train", {"video": np.zeros((2, 4, 32), np.float32)})], "'video'"),
        ([ForwardItem(1, "train", {"image": np.zeros((2, 15, 32), np.float32)})], r"\(2, 15, 32\), not \(2, 16, 32\)"),
        ([ForwardItem(1, "train", {"image": np.zeros((0, 16, 32), np.float32)})], r"\(0, 16, 32\)"),
        ([ForwardItem(1, "train", random_tokens(2) | random_tokens(3, names=("image",)))], r"\(3, 16, 32\), not \(2"),
    ],
)
def test_microbatches_that_do_not_fit_are_refused(items: list[ForwardItem], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        small_engine().forward(items)


def test_commit_reports_norm_and_rate() -> None:
    engine = small_engine(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, clip_norm=1e-3, warmup_ratio=0.5)
    before = engine.state_dict().weights
    forwarded = engine.forward([train_item(1)])
    engine.backward(group_of(forwarded), gradients_of(forwarded), last=True)
    wanted_norm = torch.cat([total.flatten() / 4 for total in engine.gradient_sums()]).norm()
    result = engine.commit(4, 0.25)
    assert result.learning_rate == pytest.approx(0.05)
    assert result.gradient_norm == pytest.approx(float(wanted_norm), rel=1e-5)
    after = engine.state_dict().weights
    step = torch.cat([(after[name] - before[name]).flatten() for name in before]).norm()
    assert float(step) == pytest.approx(0.05 * 1e-3, rel=1e-2)


def test_a_window_without_samples_cannot_be_committed() -> None:
    with pytest.raises(ValueError, match="without samples"):
        small_engine().commit(0, None)
