"""An image size in the model's options that no image of the run has is told: only weights from elsewhere have one."""

from __future__ import annotations

import logging

import pytest

from cutlayer.server_worker.model_builder import build
from support.small_run import small_settings

OPTIONS: dict[str, object] = {"patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize("size", [5, [4, 6]])
def test_size_that_no_image_has_is_told_with_the_fix(caplog: pytest.LogCaptureFixture, size: object) -> None:
    settings = small_settings(model={"options": {**OPTIONS, "img_size": size}})
    with caplog.at_level(logging.WARNING, "cutlayer"):
        build(settings, 0)
    (told,) = caplog.messages
    assert f"[model] options img_size = {size} has no effect: the images are 4 x 4 (image)\nfix: " in told


@pytest.mark.parametrize("options", [{}, {"img_size": 4}, {"img_size": [4, 4]}])
def test_size_of_the_images_is_nothing_to_tell(caplog: pytest.LogCaptureFixture, options: dict[str, object]) -> None:
    with caplog.at_level(logging.WARNING, "cutlayer"):
        build(small_settings(model={"options": {**OPTIONS, **options}}), 0)
    assert not caplog.messages
