from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cutlayer.server_worker.modality_dropout import draw_keep


def test_same_seed_and_key_give_the_same_draw_in_every_process() -> None:
    program = (
        "from cutlayer.server_worker.modality_dropout import draw_keep\n"
        "print(draw_keep(7, ('clinic/07', 3), (8, 2), 0.4).tolist())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    here = draw_keep(7, ("clinic/07", 3), (8, 2), 0.4)
    assert str(here.tolist()) == other


def test_other_seed_or_key_gives_another_draw() -> None:
    draws = [
        draw_keep(seed, key, (64, 2), 0.5) for seed, key in ((0, ("a", 1)), (1, ("a", 1)), (0, ("a", 2)), (0, ("b", 1)))
    ]
    assert len({draw.tobytes() for draw in draws}) == 4


@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_no_sample_loses_every_modality(num_modalities: int) -> None:
    keep_BM = draw_keep(0, "key", (2_000, num_modalities), 0.95)
    assert keep_BM.any(axis=1).all()
    assert keep_BM.any(axis=0).all()


def test_each_modality_is_dropped_at_the_rate() -> None:
    keep_BM = draw_keep(0, "key", (20_000, 2), 0.2)
    # Of the 4 % that would lose both, each modality is spared by half.
    np.testing.assert_allclose(1.0 - keep_BM.mean(axis=0), 0.2 - 0.02, atol=0.01)


def test_nothing_is_dropped_at_rate_0() -> None:
    assert draw_keep(0, "key", (100, 2), 0.0).all()
