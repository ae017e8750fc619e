"""A tokenizer of a site's own: torch and NumPy agree, what is wrong is told, what is learned outlives the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cutlayer.broker.errors import ManifestUnsatisfiable, SettingsError
from cutlayer.broker.manifest import Manifest, SiteOptimizer, TokensSpec
from cutlayer.edge_agent.own_tokenizers import check_sources, open_own_tokenizers, parse_sources
from cutlayer.edge_agent.site_parts import SiteParts, TokenizerSource
from cutlayer.edge_agent.tokenizers import tokenizer_from_spec
from cutlayer.edge_agent.torch_tokenizer import SAVE_EVERY_STEPS, TorchTokenizer
from cutlayer.server_worker.raw_features import raw_features
from cutlayer.server_worker.torch_tokenizers import torch_tokenizer
from support.modalities import EVERY_KIND, raw_samples
from support.small_run import IMAGE
from support.small_side import WIDTH, small_manifest

CONVOLUTIONS = "support.own_tokenizers:build"
SPEC = TokensSpec(num_tokens=4, layout="grid", rows=2, raw=IMAGE)
OPTIMIZER = SiteOptimizer(lr=0.01, weight_decay=0.1, clip_norm=1.0, warmup_ratio=0.1)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 4, 4, 1)).astype(np.uint8)
GRADIENT = RNG.normal(size=(4, 4, WIDTH)).astype(np.float32)


def manifest(*, is_trained: bool = False, run_id: str = "small-0", spec: TokensSpec = SPEC) -> Manifest:
    base = small_manifest()
    return base.model_copy(
        update={
            "run_id": run_id,
            "modalities": {"image": spec},
            "tokenizers": base.tokenizers.model_copy(update={"mode": "trainable" if is_trained else "frozen"}),
            "site_optimizer": OPTIMIZER,
        }
    )


def opened(run: Manifest, source: TokenizerSource | None = None, agent: str = "site/0") -> TorchTokenizer:
    site = SiteParts(agent=agent, tokenizers={"image": source or TokenizerSource(CONVOLUTIONS)})
    tokenizer = open_own_tokenizers(run, ("image",), site, 400)["image"]
    assert isinstance(tokenizer, TorchTokenizer)
    return tokenizer


def weights_of(tokenizer: TorchTokenizer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tokenizer.module.named_parameters()}


class Twin(nn.Module):
    """The worker's twin of a standard tokenizer, from raw samples on."""

    def __init__(self, spec: Any, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.raw = raw_features(spec)
        self.map = torch_tokenizer("x", spec, weights, torch.float32)

    def forward(self, raw: Tensor) -> Tensor:
        tokens: Tensor = self.map(self.raw(raw))
        return tokens


@pytest.mark.parametrize("name", ["image", "audio", "series", "table"])
def test_torch_and_numpy_agree_on_tokens_and_gradients(name: str) -> None:
    spec, rng = EVERY_KIND[name], np.random.default_rng(1)
    shapes = spec.parameter_shapes(WIDTH)
    parts = {f"x.{part}": rng.normal(size=shape).astype(np.float32) for part, shape in shapes.items()}
    raw = raw_samples(name, 5, whole=True)
    numpy_side = tokenizer_from_spec("x", spec, parts)
    twin = Twin(spec, {part: torch.from_numpy(value.copy()) for part, value in parts.items()})
    wanted = TokensSpec(num_tokens=spec.num_tokens)
    torch_side = TorchTokenizer("x", wanted, twin, WIDTH, optimizer=SiteOptimizer(lr=0.1))
    tokens_BND = numpy_side.tokenize(raw)
    np.testing.assert_allclose(torch_side.tokenize(raw), tokens_BND, rtol=1e-5, atol=1e-5)
    gradient_BND = rng.normal(size=tokens_BND.shape).astype(np.float32)
    expected = numpy_side.gradients(numpy_side.features(raw), gradient_BND)
    found = torch_side.gradients(torch_side.features(raw), gradient_BND)
    assert {f"map.{part}" for part in expected} == found.keys()
    for part, value in expected.items():
        difference = np.linalg.norm(found[f"map.{part}"] - value) / np.linalg.norm(value)
        assert difference < 1e-5, part


def test_the_same_seed_gives_the_same_tokenizer_and_frozen_ones_have_no_gradient() -> None:
    first, second = opened(manifest()), opened(manifest())
    np.testing.assert_array_equal(first.tokenize(IMAGES), second.tokenize(IMAGES))
    assert not any(value.requires_grad for value in first.module.parameters())
    assert first.presence(IMAGES) is None
    assert (first.num_tokens, first.width) == (4, WIDTH)


def test_a_file_of_weights_is_what_it_begins_with(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    tokenizer = opened(manifest())
    weights = {name: value + 1.0 for name, value in tokenizer.module.state_dict().items()}
    safetensors.torch.save_file(weights, file)
    begun = opened(manifest(), TokenizerSource(CONVOLUTIONS, weights=file))
    for name, value in begun.module.state_dict().items():
        torch.testing.assert_close(value, weights[name])


def test_weights_of_another_module_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"other": np.zeros(3, np.float32)}, file)
    with pytest.raises(SettingsError, match="do not fit the module"):
        opened(manifest(), TokenizerSource(CONVOLUTIONS, weights=file))


def learned(tokenizer: TorchTokenizer, steps: range) -> None:
    for _ in steps:
        tokenizer.learn(tokenizer.gradients(IMAGES, GRADIENT), len(IMAGES))


def test_what_is_learned_goes_on_where_the_last_save_was(tmp_path: Path) -> None:
    source = TokenizerSource(CONVOLUTIONS, state=tmp_path / "image.safetensors")
    whole = opened(manifest(is_trained=True))
    learned(whole, range(SAVE_EVERY_STEPS + 5))
    first = opened(manifest(is_trained=True), source)
    learned(first, range(SAVE_EVERY_STEPS))
    second = opened(manifest(is_trained=True), source)
    learned(second, range(5))
    for name, value in weights_of(second).items():
        torch.testing.assert_close(value, weights_of(whole)[name], rtol=0, atol=0)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    tokenizer = opened(manifest(is_trained=True))
    before = weights_of(tokenizer)
    broken = GRADIENT.copy()
    broken[0, 0, 0] = np.inf
    tokenizer.learn(tokenizer.gradients(IMAGES, broken), len(IMAGES))
    for name, value in weights_of(tokenizer).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(("run_id", "agent"), [("small-1", "site/0"), ("small-0", "site/1")])
def test_the_state_of_another_run_or_agent_is_not_written_over(tmp_path: Path, run_id: str, agent: str) -> None:
    source = TokenizerSource(CONVOLUTIONS, state=tmp_path / "image.safetensors")
    opened(manifest(is_trained=True), source).save()
    with pytest.raises(SettingsError, match="--tokenizer-weights"):
        opened(manifest(is_trained=True, run_id=run_id), source, agent)


def test_the_state_of_another_module_is_refused(tmp_path: Path) -> None:
    source = TokenizerSource(CONVOLUTIONS, state=tmp_path / "image.safetensors")
    opened(manifest(is_trained=True), source).save()
    with pytest.raises(SettingsError, match="of another module"):
        opened(manifest(is_trained=True), TokenizerSource("support.own_tokenizers:too_few", state=source.state))


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        ("fails", "RuntimeError: no weights today"),
        ("no_module", "gives a str"),
        ("too_few", r"gives \(4, 3, 16\) for raw samples \(4, 4, 4, 1\), and the run wants \(4, 4, 16\)"),
        ("missing", "has no callable 'missing'"),
    ],
)
def test_a_module_that_is_wrong_is_told(factory: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        opened(manifest(), TokenizerSource(f"support.own_tokenizers:{factory}")).tokenize(IMAGES)


def test_tokens_that_are_not_finite_are_told() -> None:
    run = manifest(spec=TokensSpec(num_tokens=3, raw=IMAGE))
    with pytest.raises(SettingsError, match="not finite"):
        opened(run, TokenizerSource("support.own_tokenizers:gives_nothing")).tokenize(IMAGES)


def test_a_module_that_fails_on_the_data_is_told() -> None:
    flat: NDArray[np.uint8] = IMAGES.reshape(4, -1)
    with pytest.raises(SettingsError, match=r"fails on raw samples uint8 \(4, 16\)"):
        opened(manifest()).tokenize(flat)


def test_a_run_that_leaves_a_tokenizer_to_its_sites_needs_one() -> None:
    with pytest.raises(ManifestUnsatisfiable, match=r"--tokenizer image=package\.module:callable"):
        open_own_tokenizers(manifest(), ("image",), SiteParts(), 400)
    assert open_own_tokenizers(manifest(), (), SiteParts(), 400) == {}


def test_a_tokenizer_that_comes_with_the_run_is_not_replaced() -> None:
    with pytest.raises(ManifestUnsatisfiable, match="comes with the run"):
        open_own_tokenizers(
            small_manifest(), ("image",), SiteParts(tokenizers={"image": TokenizerSource(CONVOLUTIONS)}), 400
        )


@pytest.mark.parametrize(
    ("tokenizers", "weights", "text"),
    [
        (["image"], [], "not in the right form"),
        (["image=no_colon"], [], "not in the right form"),
        (["image=a.b:c", "image=a.b:d"], [], "given twice"),
        (["image=a.b:c"], ["sound=file"], "is of no --tokenizer"),
    ],
)
def test_flags_of_another_form_are_told(tokenizers: list[str], weights: list[str], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        parse_sources(tokenizers, weights, [])


def test_flags_are_checked_before_a_run_is_known(tmp_path: Path) -> None:
    sources = parse_sources([f"image={CONVOLUTIONS}"], [f"image={tmp_path / 'none'}"], [])
    with pytest.raises(SettingsError, match="no such file"):
        check_sources(sources)
    with pytest.raises(SettingsError, match=r"--tokenizer image=nowhere\.at:all"):
        check_sources(parse_sources(["image=nowhere.at:all"], [], []))
    check_sources(parse_sources([f"image={CONVOLUTIONS}"], [], []))
