"""Specifications of modalities: what fits together, what is refused with which fix, what is counted."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cutlayer.broker.modalities import (
    MODALITY_KINDS,
    AudioSpec,
    ImageSpec,
    ModalitySpec,
    SeriesSpec,
    TableSpec,
    TextSpec,
)
from support.modalities import AUDIO, EVERY_KIND, IMAGE, SERIES, TABLE, TEXT

ANY_SPEC: pydantic.TypeAdapter[ModalitySpec] = pydantic.TypeAdapter(ModalitySpec)


def problem_of(kind: str, **keys: Any) -> str:
    with pytest.raises(pydantic.ValidationError) as caught:
        ANY_SPEC.validate_python({"kind": kind, **keys})
    return str(caught.value)


def test_every_kind_is_tested_here() -> None:
    # Those of the sites themselves: test_tokens_spec.py.
    assert sorted([*(spec.kind for spec in EVERY_KIND.values()), "tokens"]) == sorted(MODALITY_KINDS)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_specification_comes_back_from_json_as_it_was(name: str) -> None:
    spec = EVERY_KIND[name]
    assert ANY_SPEC.validate_json(spec.model_dump_json()) == spec
    assert ANY_SPEC.validate_python(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_images_and_sounds_of_earlier_manifests_are_written_as_they_were() -> None:
    document = '{"kind":"image","height":8,"width":16,"channels":1,"patch":4,"mean":0.5,"std":0.5}'
    assert json.loads(ANY_SPEC.validate_json(document).model_dump_json()) == json.loads(document)
    document = (
        '{"kind":"audio","sample_rate_hz":11025,"num_frames":32,"hop_samples":220,"fft_samples":512,"num_mels":16,'
        '"patch":8,"mean":-4.0,"std":4.0}'
    )
    assert json.loads(ANY_SPEC.validate_json(document).model_dump_json()) == json.loads(document)


def test_tokens_and_values_are_counted() -> None:
    image = ImageSpec(height=8, width=12, channels=3, patch=(2, 3))
    assert (image.grid, image.num_tokens, image.patch_values) == ((4, 4), 16, 18)
    assert image.parameter_shapes(5) == {"weight": (18, 5), "bias": (5,)}
    assert (SERIES.grid, SERIES.num_tokens, SERIES.patch_values) == ((1, 5), 5, 8)
    assert (TEXT.grid, TEXT.parameter_shapes(5)) == ((1, 6), {"embedding": (256, 5)})
    assert TABLE.column_names == ("age", "pulse", "sex", "ward")
    assert (TABLE.grid, TABLE.num_categories) == ((1, 4), 5)
    assert TABLE.parameter_shapes(5) == {"bias": (4, 5), "weight": (2, 5), "embedding": (5, 5)}


def test_only_parts_that_a_table_has_are_parameters() -> None:
    assert set(TableSpec(columns=("age",)).parameter_shapes(5)) == {"bias", "weight"}
    of_categories = TableSpec.model_validate({"categories": [{"name": "sex", "values": ["f", "m"]}]})
    assert set(of_categories.parameter_shapes(5)) == {"bias", "embedding"}


def test_which_kinds_may_have_fewer_tokens_and_how_tokens_lie() -> None:
    assert {spec.kind: (spec.order, spec.is_ragged) for spec in EVERY_KIND.values()} == {
        "image": ("grid", False),
        "audio": ("grid", False),
        "text": ("line", True),
        "series": ("line", True),
        "table": ("set", True),
    }


def test_bytes_and_operations_are_those_of_the_pages() -> None:
    assert (IMAGE.raw_bytes, IMAGE.feature_bytes, IMAGE.feature_flops) == (4 * 4, 4 * 4 * 4, 3 * 16)
    assert (AUDIO.raw_bytes, AUDIO.feature_bytes) == (2 * AUDIO.num_samples, 4 * 4 * 4)
    assert (TEXT.raw_bytes, TEXT.feature_bytes, TEXT.feature_flops) == (6, 24, 0)
    subwords = TextSpec(num_tokens=6, vocabulary="0" * 64, vocabulary_size=300)
    assert subwords.raw_bytes == 24
    assert (SERIES.raw_bytes, SERIES.feature_bytes, SERIES.feature_flops) == (160, 160, 80)
    assert (TABLE.raw_bytes, TABLE.feature_bytes, TABLE.feature_flops) == (16, 16, 4)
    assert [EVERY_KIND[name].token_flops(10) for name in sorted(EVERY_KIND)] == [80, 80, 160, 20, 10]


@given(size=st.integers(1, 2_000), other=st.integers(1, 2_000), patch=st.integers(1, 64))
def test_an_image_that_its_patch_does_not_divide_is_refused_with_sizes_that_it_does(
    size: int, other: int, patch: int
) -> None:
    assume(size % patch or other % patch)
    text = problem_of("image", height=size, width=other, patch=patch)
    found = re.search(r"the nearest size that it divides, (\d+) x (\d+) or (\d+) x (\d+)", text)
    assert found is not None
    low, high = (int(found[1]), int(found[2])), (int(found[3]), int(found[4]))
    for height, width in (low, high):
        assert ImageSpec(height=height, width=width, patch=patch).num_tokens >= 1
        assert abs(height - size) < patch
        assert abs(width - other) < patch


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"kind": "image", "height": 8, "width": 8, "patch": "x"}, "'x' is no size of a patch"),
        ({"kind": "image", "height": 8, "width": 8, "patch": True}, "True is no size of a patch"),
        ({"kind": "image", "height": 8, "width": 8, "patch": 0}, "0 is no size of a patch"),
        ({"kind": "image", "height": 8, "width": 8, "patch": [2, 2, 2]}, "is no size of a patch"),
        (
            {"kind": "image", "height": 8, "width": 8, "patch": 2, "mean": [0.1, 0.2]},
            "mean has 2 values for 3 channels",
        ),
        ({"kind": "image", "height": 8, "width": 8, "patch": 2, "std": [0.1, 0.2, 0]}, "0 is not above 0"),
        ({"kind": "image", "height": 8, "width": 8, "patch": 2, "mean": "dark"}, "'dark' is no finite number"),
        ({"kind": "series", "rate_hz": 1, "num_steps": 10, "patch": 4}, "or 8 or 12 steps"),
        ({"kind": "series", "rate_hz": 0, "num_steps": 10, "patch": 5}, "rate_hz"),
        ({"kind": "series", "rate_hz": 1, "num_steps": 9, "patch": 3, "channels": 2, "std": [1]}, "for 2 channels"),
        ({"kind": "table"}, "a table without columns"),
        ({"kind": "table", "columns": ["a", "a"]}, "a column is named twice"),
        ({"kind": "table", "columns": ["a", "b"], "mean": [1, 2, 3]}, "mean has 3 values for 2 columns"),
        ({"kind": "table", "columns": ["a"], "categories": [{"name": "a", "values": ["x"]}]}, "named twice"),
        ({"kind": "table", "categories": [{"name": "a", "values": ["x", "x"]}]}, "has one twice"),
        ({"kind": "text", "num_tokens": 8, "vocabulary": "words.json"}, "match pattern"),
        ({"kind": "text", "num_tokens": 8, "vocabulary_size": 300}, "there are 256"),
        ({"kind": "text", "num_tokens": 8, "vocabulary": "0" * 64, "vocabulary_size": 1 << 19}, "262144"),
    ],
)
def test_what_does_not_fit_together_is_refused(keys: dict[str, Any], problem: str) -> None:
    assert problem in problem_of(**keys)


def test_data_fit_whose_raw_form_is_the_same() -> None:
    assert IMAGE.raw_form == IMAGE.model_copy(update={"patch": 4, "mean": 0.1}).raw_form
    assert IMAGE.raw_form != IMAGE.model_copy(update={"channels": 3}).raw_form
    assert AUDIO.raw_form == AUDIO.model_copy(update={"num_frames": 8}).raw_form
    assert AUDIO.raw_form != AUDIO.model_copy(update={"sample_rate_hz": 8_000}).raw_form
    assert TEXT.raw_form == TextSpec(num_tokens=99, vocabulary="0" * 64, vocabulary_size=9).raw_form
    assert SERIES.raw_form != SERIES.model_copy(update={"rate_hz": 2.0}).raw_form
    assert TABLE.raw_form != TABLE.model_copy(update={"columns": ("pulse", "age")}).raw_form
    assert isinstance(SERIES, SeriesSpec)
    assert isinstance(AUDIO, AudioSpec)


EXAMPLES: dict[str, ModalitySpec] = {
    "image, 224 x 224, 3 channels, `patch = 16`": ImageSpec(height=224, width=224, channels=3, patch=16),
    "audio, 16 kHz, 10 s, `num_mels = 128`, `patch = 16`": AudioSpec(
        sample_rate_hz=16_000, num_frames=1_024, hop_samples=160, fft_samples=400, num_mels=128, patch=16
    ),
    "text, 64 subwords of 8,000": TextSpec(num_tokens=64, vocabulary="0" * 64, vocabulary_size=8_000),
    "text, 256 bytes": TextSpec(num_tokens=256),
    "series, 12 channels, 500 Hz, 10 s, `patch = 50`": SeriesSpec(rate_hz=500, num_steps=5_000, channels=12, patch=50),
    "table, 20 columns of numbers, 4 of 5 categories": TableSpec.model_validate(
        {
            "columns": [f"number {column}" for column in range(20)],
            "categories": [{"name": f"category {column}", "values": list("abcde")} for column in range(4)],
        }
    ),
}


def test_the_page_says_what_each_kind_costs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "modalities.md").read_text(encoding="utf-8")
    width = 768
    for what, spec in EXAMPLES.items():
        num_parameters = sum(math.prod(shape) for shape in spec.parameter_shapes(width).values())
        operations = spec.num_tokens * spec.token_flops(width) / 1e6
        row = (
            f"| {what} | {spec.num_tokens:,} | {spec.raw_bytes:,} | {spec.num_tokens * width:,} | "
            f"{num_parameters:,} | {operations:.3g} M |"
        )
        assert row in page
