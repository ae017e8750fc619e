"""Runs whose sites bring tokenizers of their own: frozen ones, and trained ones that equal training in one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.learning_rate import learning_rate_factor
from cutlayer.broker.manifest import TokensSpec
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.site_parts import SiteParts, TokenizerSource
from cutlayer.edge_agent.torch_blocks import FirstBlocks
from cutlayer.server_worker.activation_store import MemoryActivationStore
from cutlayer.server_worker.export import export_model
from cutlayer.server_worker.exported_model import load
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.optimizer import make_optimizer
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.own_tokenizers import Convolutions, small_vit
from support.small_run import AUDIO, IMAGE, SmallWorker, small_dataset, small_settings
from support.torch_losses import torch_losses

TOKENS = TokensSpec(num_tokens=4, layout="grid", rows=2, raw=IMAGE)
SOURCE = TokenizerSource("support.own_tokenizers:build")
Weights = dict[str, torch.Tensor]


def settings_of(*, is_trained: bool, with_sound: bool, num_agents: int = 1) -> RunSettings:
    document = small_settings(
        telemetry_s=3_000.0,
        run={"min_agents": num_agents, "epochs": 4, "absence_grace_s": 3_600.0},
        worker={"lease_s": 3_600.0, "credits": 1},
        evaluation={"every_epochs": 0},
        codecs={"activation_gradients": "identity"},
        activations={"mode": "every-step"} if is_trained else {},
        tokenizers={"mode": "trainable", "every_steps": 1, "every_windows": 1} if is_trained else {},
        optimizer={"name": "sgd", "lr": 0.1, "clip_norm": 0.5},
    ).model_dump()
    document["modalities"] = {"image": TOKENS.model_dump()} | ({"sound": AUDIO.model_dump()} if with_sound else {})
    return RunSettings.model_validate(document)


def site(state: Path | None = None) -> SiteParts:
    return SiteParts(tokenizers={"image": TokenizerSource(SOURCE.factory, state=state)})


def images(seed: int, num_train: int = 20) -> ArrayDataset:
    data = small_dataset(seed, num_train)
    return ArrayDataset(
        "small",
        data.classes,
        {"image": IMAGE},
        {split: type(batch)({"image": batch.inputs["image"]}, batch.targets) for split, batch in data.splits.items()},
    )


def train_in_one_place(
    settings: RunSettings, data: ArrayDataset, topic: str, make: Callable[[int], nn.Module] = Convolutions
) -> tuple[Weights, Weights]:
    """Return the weights of encoder and tokenizer, trained as one model of two optimizers in plain PyTorch."""
    built = build(settings, settings.run.seed)
    encoder, own = built.encoder, settings.optimizer
    torch.manual_seed(settings.run.seed)
    module = make(built.width).eval()
    optimizers: list[torch.optim.Optimizer] = [make_optimizer(encoder, own)]
    trains = settings.tokenizers.mode == "trainable"
    if trains:
        optimizers.append(torch.optim.SGD(module.parameters(), lr=own.lr, momentum=own.momentum))
    run = settings.run
    plan = EpochPlan(run.seed, topic, run.epochs, data.num_samples("train"), 0, run.microbatch_samples)
    done, planned = 0, plan.epochs * plan.num_train
    for step in range(plan.total_steps):
        batch = data.batch("train", plan.train_indices(step))
        for optimizer in optimizers:
            optimizer.zero_grad()
        outputs_BC = encoder({"image": module(torch.from_numpy(batch.inputs["image"]))})
        torch_losses(settings.task, outputs_BC, batch.targets).mean().backward()  # type: ignore[no-untyped-call]
        done += len(batch.targets)
        rate = own.lr * learning_rate_factor(
            done / planned, warmup_ratio=own.warmup_ratio, min_lr_ratio=own.min_lr_ratio
        )
        assert own.clip_norm is not None
        for part in (encoder, module):
            torch.nn.utils.clip_grad_norm_(part.parameters(), own.clip_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
    return dict(encoder.named_parameters()), dict(module.state_dict())


def assert_same(found: Weights, whole: Weights) -> None:
    for name, weight in whole.items():
        difference = (found[name] - weight).norm() / weight.norm().clamp_min(1e-12)
        assert difference < 1e-5, f"{name} differs by {difference:.2e}"


@pytest.mark.parametrize("is_trained", [False, True], ids=["frozen", "trained"])
def test_split_equals_whole_with_a_tokenizer_of_the_sites_own(tmp_path: Path, *, is_trained: bool) -> None:
    settings, data = settings_of(is_trained=is_trained, with_sound=False), images(0)
    network = VirtualNetwork()
    worker = SmallWorker(network, settings)
    agent = network.add_agent("site/0", data, site=site(tmp_path / "image.safetensors"))
    network.run(lambda: worker.runtime.is_finished and agent.is_finished)
    assert worker.session.window == 20
    encoder, tokenizer = train_in_one_place(settings, data, "site/0")
    assert_same(dict(worker.built.encoder.named_parameters()), encoder)
    assert (tmp_path / "image.safetensors").exists() is is_trained
    if is_trained:
        assert_same(safetensors.torch.load_file(tmp_path / "image.safetensors"), tokenizer)


@pytest.mark.parametrize("is_trained", [False, True], ids=["frozen", "trained"])
def test_split_equals_whole_with_the_first_blocks_at_the_agent(tmp_path: Path, *, is_trained: bool) -> None:
    base, data, state = settings_of(is_trained=is_trained, with_sound=False), images(0), tmp_path / "image.safetensors"
    model = base.model.model_dump() | {"options": base.model.options | {"depth": 3}, "first_block": 2}
    tokens = TOKENS.model_dump() | {"num_tokens": 5, "layout": "set", "rows": None}
    settings = RunSettings.model_validate(base.model_dump() | {"model": model, "modalities": {"image": tokens}})
    network = VirtualNetwork()
    worker = SmallWorker(network, settings)
    source = TokenizerSource("support.own_tokenizers:two_blocks", state=state)
    agent = network.add_agent("site/0", data, site=SiteParts(tokenizers={"image": source}))
    network.run(lambda: worker.runtime.is_finished and agent.is_finished)
    assert worker.session.window == 20
    encoder, first = train_in_one_place(settings, data, "site/0", lambda _: FirstBlocks(small_vit(), 2))
    assert_same(dict(worker.built.encoder.named_parameters()), encoder)
    if is_trained:
        assert_same(safetensors.torch.load_file(state), first)


def test_own_and_common_tokenizers_train_side_by_side(tmp_path: Path) -> None:
    settings = settings_of(is_trained=True, with_sound=True, num_agents=2)
    network = VirtualNetwork(LinkFaults(delay_s=0.01))
    worker = SmallWorker(network, settings)
    before = {name: value.detach().clone() for name, value in worker.built.encoder.named_parameters()}
    agents = []
    for index in range(2):
        data = small_dataset(index, 12)
        splits = {
            split: type(batch)({"image": batch.inputs["image"], "sound": batch.inputs["audio"]}, batch.targets)
            for split, batch in data.splits.items()
        }
        named = ArrayDataset("small", data.classes, {"image": IMAGE, "sound": AUDIO}, splits)
        agents.append(network.add_agent(f"site/{index}", named, site=site(tmp_path / f"{index}.safetensors")))
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    after = dict(worker.built.encoder.named_parameters())
    held = [name for name in after if name.startswith("tokenizers.")]
    assert held == ["tokenizers.sound_tokens.bias", "tokenizers.sound_tokens.weight"]
    assert not any(torch.equal(after[name], before[name]) for name in held)
    first, second = (safetensors.torch.load_file(tmp_path / f"{index}.safetensors") for index in range(2))
    assert not torch.equal(first["first.weight"], second["first.weight"])


def test_tokens_of_a_frozen_tokenizer_go_up_once_and_the_export_takes_them(tmp_path: Path) -> None:
    settings = settings_of(is_trained=False, with_sound=False)
    network = VirtualNetwork()
    worker = SmallWorker(network, settings, kept_in=MemoryActivationStore())
    agent = network.add_agent("site/0", images(0), site=site())
    network.run(lambda: worker.runtime.is_finished and agent.is_finished)
    assert worker.num_stored_samples >= 60
    export_model(tmp_path, settings, worker.built, "", with_onnx=False)
    tokens_BND = torch.randn(3, 4, 16)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path)({"image": tokens_BND}), worker.built.encoder({"image": tokens_BND}))
    assert "what the site's own tokenizer gives" in (tmp_path / "load_model.py").read_text()
