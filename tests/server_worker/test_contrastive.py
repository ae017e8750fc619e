"""InfoNCE over a window at the worker: the same as one graph over all samples, whatever groups these came in."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.server_worker.backbone import create_vit
from cutlayer.server_worker.contrastive import info_nce
from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.pair_head import PairHead
from cutlayer.server_worker.passes import ForwardItem
from cutlayer.server_worker.settings import ModelSettings, OptimizerSettings
from server_worker.small_model import GRIDS, OPTIONS, random_tokens

# Axes: W samples of a window, E dimensions.

DIMENSIONS = 6
PAIR = RetrievalSpec(between=("audio", "image"), dimensions=DIMENSIONS)
OPTIMIZER = OptimizerSettings(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, clip_norm=None, warmup_ratio=0.0)


def pair_encoder() -> SplitEncoder:
    torch.manual_seed(0)
    vit = create_vit(ModelSettings(options=OPTIONS))
    encoder = SplitEncoder(vit, GRIDS, num_classes=2 * DIMENSIONS, fusion="late", pair=PAIR)
    return encoder.double()


def embeddings(num_samples: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(num_samples, 2 * DIMENSIONS, dtype=torch.float64)


def test_the_loss_is_the_mean_of_both_directions() -> None:
    window_W2E = embeddings(5)
    first_WE, second_WE = window_W2E[:, :DIMENSIONS], window_W2E[:, DIMENSIONS:]
    for row in range(5):
        forth = math.exp(first_WE[row] @ second_WE[row]) / sum(math.exp(first_WE[row] @ other) for other in second_WE)
        back = math.exp(first_WE[row] @ second_WE[row]) / sum(math.exp(other @ second_WE[row]) for other in first_WE)
        assert info_nce(window_W2E)[row].item() == pytest.approx(-0.5 * (math.log(forth) + math.log(back)))


def test_a_sample_that_lacks_a_modality_is_nobodys_negative() -> None:
    window_W2E = embeddings(4)
    window_W2E[2, DIMENSIONS:] = 0
    losses_W = info_nce(window_W2E)
    assert losses_W[2] == 0
    torch.testing.assert_close(losses_W[[0, 1, 3]], info_nce(window_W2E[[0, 1, 3]]))


def test_outputs_have_the_temperature_in_them() -> None:
    encoder = pair_encoder().eval()
    assert isinstance(encoder.head, PairHead)
    tokens = {name: torch.from_numpy(array).double() for name, array in random_tokens(3, 0).items()}
    outputs_W2E = encoder(tokens)
    assert outputs_W2E.shape == (3, 2 * DIMENSIONS)
    torch.testing.assert_close(
        outputs_W2E[:, :DIMENSIONS].norm(dim=1) ** 2, torch.full((3,), 1 / 0.07, dtype=torch.float64)
    )
    alone_W2E = encoder({"image": tokens["image"]})
    torch.testing.assert_close(alone_W2E[:, DIMENSIONS:], outputs_W2E[:, DIMENSIONS:])
    assert not alone_W2E[:, :DIMENSIONS].any()


def test_modalities_of_a_pair_do_not_see_each_other() -> None:
    with pytest.raises(ValueError, match="late fusion"):
        SplitEncoder(create_vit(ModelSettings(options=OPTIONS)), GRIDS, num_classes=2 * DIMENSIONS, pair=PAIR)


@pytest.mark.parametrize("pieces", [[7], [3, 4], [2, 2, 3]])
def test_a_window_of_several_groups_trains_as_one_graph_over_all(pieces: list[int]) -> None:
    encoder = pair_encoder()
    whole, engine = copy.deepcopy(encoder), Engine(encoder, OPTIMIZER, seed=0, contrasts_window=True)
    tokens = random_tokens(7, 1)
    starts = np.cumsum([0, *pieces])
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        key = ("site", number)
        item = ForwardItem(key, "train", {name: array[start:stop] for name, array in tokens.items()})
        forwarded = engine.forward([item])
        assert forwarded.outputs[key].shape == (stop - start, 1)
        assert forwarded.group_id is not None
        engine.backward(forwarded.group_id, {key: np.zeros((stop - start, 1), np.float32)}, last=True)
    assert engine.num_live_graphs == len(pieces)
    engine.commit(7, 0.0)
    assert engine.num_live_graphs == 0
    whole.train()
    loss = info_nce(whole({name: torch.from_numpy(array).double() for name, array in tokens.items()})).mean()
    gradients = dict(
        zip(dict(whole.named_parameters()), torch.autograd.grad(loss, list(whole.parameters())), strict=True)
    )
    trained = engine.state_dict().weights
    assert gradients["head.log_scale"] != 0
    for name, before in whole.named_parameters():
        torch.testing.assert_close(trained[name], before.detach() - 0.1 * gradients[name], rtol=1e-5, atol=1e-8)


def test_a_group_that_comes_back_in_pieces_is_in_two_windows() -> None:
    engine = Engine(pair_encoder(), OPTIMIZER, seed=0, contrasts_window=True)
    tokens = random_tokens(4, 2)
    items = [
        ForwardItem(
            ("site", place), "train", {name: array[2 * place : 2 * place + 2] for name, array in tokens.items()}
        )
        for place in range(2)
    ]
    forwarded = engine.forward(items)
    assert forwarded.group_id is not None
    zeros = np.zeros((2, 1), np.float32)
    engine.backward(forwarded.group_id, {items[0].key: zeros}, last=False)
    assert engine.commit(2, 0.0).applied
    engine.backward(forwarded.group_id, {items[1].key: zeros}, last=True)
    assert engine.commit(2, 0.5).applied
    assert engine.num_live_graphs == 0


def test_the_loss_that_agents_see_is_that_of_their_group() -> None:
    engine = Engine(pair_encoder(), OPTIMIZER, seed=0, contrasts_window=True)
    tokens = random_tokens(4, 2)
    item = ForwardItem("a", "train", tokens)
    evaluated = engine.forward([ForwardItem("b", "eval", tokens)]).outputs["b"]
    assert evaluated.shape == (4, 2 * DIMENSIONS)
    losses_W = info_nce(torch.from_numpy(evaluated)).numpy()
    np.testing.assert_allclose(engine.forward([item]).outputs["a"][:, 0], losses_W, rtol=1e-4)


def test_a_window_that_is_dropped_leaves_nothing_behind() -> None:
    engine = Engine(pair_encoder(), OPTIMIZER, seed=0, contrasts_window=True)
    forwarded = engine.forward([ForwardItem("a", "train", random_tokens(3, 0))])
    assert forwarded.group_id is not None
    engine.backward(forwarded.group_id, {"a": np.zeros((3, 1), np.float32)}, last=True)
    engine.drop_gradients()
    assert engine.num_live_graphs == 0
