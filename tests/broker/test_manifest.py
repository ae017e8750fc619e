"""The run manifest: canonical, checked, and named key by key when it is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.manifest import (
    MAX_MANIFEST_BYTES,
    AudioSpec,
    ClassificationSpec,
    CodecNames,
    ImageSpec,
    Manifest,
    TokenizerWeights,
    WindowSpec,
)
from support.message_values import mutated

MANIFEST = Manifest(
    run_id="digits-1",
    seed=3,
    epochs=8,
    microbatch_samples=32,
    width=128,
    model="vit_tiny",
    num_parameters=812_042,
    modalities={
        "image": ImageSpec(height=8, width=16, channels=1, patch=4),
        "audio": AudioSpec(
            sample_rate_hz=11_025, num_frames=32, hop_samples=220, fft_samples=512, num_mels=16, patch=8
        ),
    },
    fusion="early",
    task=ClassificationSpec(classes=("nein", "jå")),
    codecs=CodecNames(),
    window=WindowSpec(),
    tokenizers=TokenizerWeights(digest="0" * 64, num_bytes=8_192, num_chunks=1),
)


def document(**changes: Any) -> bytes:
    """Return the manifest with keys replaced; a key may name a path such as `window__samples`."""
    content = json.loads(MANIFEST.to_bytes())
    for path, value in changes.items():
        *parents, last = path.split("__")
        inside = content
        for parent in parents:
            inside = inside[parent]
        inside[last] = value
    return json.dumps(content).encode()


def test_a_manifest_comes_back_as_it_was_with_the_same_digest() -> None:
    again = Manifest.from_bytes(MANIFEST.to_bytes())
    assert again == MANIFEST
    assert again.digest() == MANIFEST.digest()
    assert len(MANIFEST.digest()) == 64


def test_the_digest_does_not_depend_on_how_the_document_was_written() -> None:
    content = json.loads(MANIFEST.to_bytes())
    spaced = json.dumps(dict(reversed(content.items())), indent=4).encode()
    assert spaced != MANIFEST.to_bytes()
    assert Manifest.from_bytes(spaced).digest() == MANIFEST.digest()


def test_a_manifest_is_canonical_json() -> None:
    text = MANIFEST.to_bytes().decode()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def test_any_difference_is_another_digest() -> None:
    assert Manifest.from_bytes(document(seed=4)).digest() != MANIFEST.digest()


def test_patches_are_counted() -> None:
    image, audio = MANIFEST.modalities["image"], MANIFEST.modalities["audio"]
    assert isinstance(image, ImageSpec)
    assert isinstance(audio, AudioSpec)
    assert (image.grid, image.num_tokens, image.patch_values) == ((2, 4), 8, 16)
    assert (audio.grid, audio.num_tokens, audio.patch_values) == ((2, 4), 8, 64)
    assert audio.num_samples == 31 * 220 + 512


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"format": 2}, "format"),
        ({"run_id": ""}, "run_id"),
        ({"run_id": "a/b"}, "run_id"),
        ({"seed": -1}, "seed"),
        ({"epochs": 0}, "epochs"),
        ({"microbatch_samples": 65_537}, "microbatch_samples"),
        ({"width": 0}, "width"),
        ({"modalities": {}}, "modalities"),
        ({"modalities__image__kind": "smell"}, "modalities.image"),
        ({"modalities__image__patch": 5}, "modalities.image"),
        ({"modalities__audio__patch": 5}, "modalities.audio"),
        ({"modalities__image__std": 0}, "modalities.image"),
        ({"fusion": "middle"}, "fusion"),
        ({"task__classes": ["one"]}, "task.classes"),
        ({"codecs__outputs": "x" * 65}, "codecs.outputs"),
        ({"codecs__outputs": ""}, "codecs.outputs"),
        ({"window__samples": 0}, "window.samples"),
        ({"window__mode": "sometimes"}, "window.mode"),
        ({"window__deadline_s": 0}, "window.deadline_s"),
        ({"tokenizers__digest": "0" * 63}, "tokenizers.digest"),
        ({"tokenizers__num_chunks": 65_537}, "tokenizers.num_chunks"),
        ({"telemetry_s": 0}, "telemetry_s"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_a_wrong_value_is_malformed_and_its_key_is_named(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(MalformedMessage, match=rf"run manifest: {key}"):
        Manifest.from_bytes(document(**changes))


@pytest.mark.parametrize("path", ["modalities__image__mean", "modalities__image__std", "window__deadline_s"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_malformed(path: str, value: float) -> None:
    with pytest.raises(MalformedMessage, match="finite"):
        Manifest.from_bytes(document(**{path: value}))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"format":1}', b"[" * 10_000, b'{"a":' * 10_000],
)
def test_what_is_no_manifest_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Manifest.from_bytes(data)


def test_a_document_over_the_limit_is_malformed_unread() -> None:
    with pytest.raises(MalformedMessage, match=str(MAX_MANIFEST_BYTES)):
        Manifest.from_bytes(b" " * (MAX_MANIFEST_BYTES + 1))


@given(st.binary(max_size=200) | mutated(MANIFEST.to_bytes()))
def test_arbitrary_and_damaged_documents_raise_nothing_else(data: bytes) -> None:
    try:
        manifest = Manifest.from_bytes(data)
    except MalformedMessage:
        return
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
