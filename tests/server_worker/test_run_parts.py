"""A worker's parts are what its settings say."""

from __future__ import annotations

import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import Manifest
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.run_parts import check_codecs, make_manifest
from cutlayer.server_worker.settings import RunSettings
from support.processes import digits_settings
from support.small_run import small_settings


@pytest.fixture(scope="module")
def settings() -> RunSettings:
    return small_settings()


@pytest.fixture(scope="module")
def built(settings: RunSettings) -> BuiltModel:
    return build(settings, 0)


def test_manifest_says_what_the_settings_and_the_model_are(settings: RunSettings, built: BuiltModel) -> None:
    manifest = make_manifest(settings, built)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert manifest.num_parameters == sum(weights.numel() for weights in built.encoder.parameters())
    assert manifest.modalities == dict(settings.modalities)
    assert (manifest.seed, manifest.epochs, manifest.microbatch_samples) == (0, 2, 4)
    assert manifest.run_id.startswith("small-")


def test_each_run_has_a_name_of_its_own_whatever_it_is_called(built: BuiltModel) -> None:
    settings = small_settings(run={"name": "n" * 64})
    names = {make_manifest(settings, built).run_id for _ in range(20)}
    assert len(names) == 20


def test_unknown_codec_is_named_with_its_key() -> None:
    with pytest.raises(SettingsError, match=r"\[codecs\] outputs = 'fp8'"):
        check_codecs(small_settings(codecs={"outputs": "fp8"}))


def test_settings_of_the_example_are_good() -> None:
    settings = digits_settings()
    check_codecs(settings)
    assert settings.run.name == "digits"
