"""Modalities whose tokenizer is the sites' own: what the run says of them, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.modalities import ImageSpec, TokensSpec
from support.small_side import small_manifest

IMAGE: dict[str, Any] = {"kind": "image", "height": 8, "width": 12, "channels": 1}


def test_a_raw_specification_needs_no_patch() -> None:
    spec = TokensSpec.model_validate({"num_tokens": 6, "raw": IMAGE})
    assert isinstance(spec.raw, ImageSpec)
    assert spec.raw_form == ImageSpec(height=8, width=12, channels=1, patch=4).raw_form
    assert spec.raw_bytes == 96
    series = {"kind": "series", "rate_hz": 1.0, "num_steps": 10}
    assert TokensSpec.model_validate({"num_tokens": 6, "raw": series}).raw is not None


@pytest.mark.parametrize(
    ("keys", "grid", "order"),
    [
        ({}, (1, 6), "set"),
        ({"layout": "line"}, (1, 6), "line"),
        ({"layout": "grid", "rows": 2}, (2, 3), "grid"),
    ],
)
def test_tokens_lie_as_the_run_says(keys: dict[str, Any], grid: tuple[int, int], order: str) -> None:
    spec = TokensSpec.model_validate({"num_tokens": 6, **keys})
    assert (spec.grid, spec.order, spec.parameter_shapes(8)) == (grid, order, {})


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"layout": "grid"}, "give both or neither"),
        ({"rows": 2}, "give both or neither"),
        ({"layout": "grid", "rows": 4}, "do not divide"),
        ({"raw": {"kind": "image", "height": 8}}, "width"),
        ({"raw": {"kind": "tokens", "num_tokens": 3}}, "tokens"),
        ({"raw": {"kind": "text", "num_tokens": 3}}, "text"),
    ],
)
def test_what_does_not_fit_is_refused(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TokensSpec.model_validate({"num_tokens": 6, **keys})


def test_a_manifest_with_tokens_comes_back_as_it_was() -> None:
    spec = TokensSpec.model_validate({"num_tokens": 6, "layout": "grid", "rows": 2, "raw": IMAGE})
    manifest = small_manifest().model_copy(update={"modalities": {"image": spec}})
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_what_agents_train_by_themselves_needs_an_optimizer() -> None:
    document = small_manifest().model_dump() | {"head": "alike"}
    with pytest.raises(ValueError, match="no optimizer for it"):
        Manifest.model_validate(document)
