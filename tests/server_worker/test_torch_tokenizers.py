"""The uncut model's tokenizers: the same tokens and gradients as the agents' own, and as torch's own layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cutlayer.edge_agent.tokenizers import Tokenizer, tokenizer_from_spec
from cutlayer.server_worker.torch_tokenizers import TorchTokenizer, torch_tokenizer
from support.modalities import EVERY_KIND, SERIES, TABLE, random_parts, raw_samples

WIDTH, NUM_SAMPLES = 7, 11


def both(name: str) -> tuple[Tokenizer, TorchTokenizer]:
    spec = EVERY_KIND[name]
    weights = {f"{name}.{part}": array for part, array in random_parts(spec, WIDTH).items()}
    tensors = {key: torch.from_numpy(array) for key, array in weights.items()}
    return tokenizer_from_spec(name, spec, weights), torch_tokenizer(name, spec, tensors, torch.float32)


def features_of(name: str, *, whole: bool = False) -> NDArray[Any]:
    return both(name)[0].features(raw_samples(name, NUM_SAMPLES, whole=whole))


def cut_gradient(name: str) -> NDArray[np.float32]:
    shape = (NUM_SAMPLES, EVERY_KIND[name].num_tokens, WIDTH)
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_tokens_are_those_of_the_agent(name: str) -> None:
    agents, own = both(name)
    features = features_of(name)
    np.testing.assert_allclose(own(torch.from_numpy(features)).detach(), agents.project(features), atol=1e-5)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_both_say_which_tokens_are_there(name: str) -> None:
    agents, own = both(name)
    features = features_of(name)
    here, there = agents.presence(features), own.presence(torch.from_numpy(features))
    assert (here is None) == (there is None) == (not EVERY_KIND[name].is_ragged)
    if here is not None and there is not None:
        np.testing.assert_array_equal(there.numpy(), here)


@pytest.mark.parametrize("whole", [False, True], ids=["with gaps", "whole"])
@pytest.mark.parametrize("name", EVERY_KIND)
def test_gradients_of_the_agent_are_those_of_automatic_differentiation(name: str, whole: bool) -> None:
    agents, own = both(name)
    features, gradient_BND = features_of(name, whole=whole), cut_gradient(name)
    own(torch.from_numpy(features)).backward(torch.from_numpy(gradient_BND))
    found = agents.gradients(features, gradient_BND)
    assert found.keys() == {part for part, _ in own.named_parameters()}
    for part, parameter in own.named_parameters():
        assert parameter.grad is not None
        assert found[part].dtype == np.float32
        np.testing.assert_allclose(found[part], parameter.grad, rtol=1e-4, atol=1e-4)


def test_a_text_is_what_torchs_embedding_gives() -> None:
    features = features_of("text", whole=True)
    own = both("text")[1]
    ids_BN = torch.from_numpy(features).long()
    torch.testing.assert_close(
        own(torch.from_numpy(features)), torch.nn.functional.embedding(ids_BN, own.get_parameter("embedding"))
    )


def test_a_series_is_what_torchs_convolution_gives() -> None:
    features = features_of("series", whole=True)
    own = both("series")[1]
    steps_BCT = torch.from_numpy(features).reshape(NUM_SAMPLES, SERIES.num_steps, SERIES.channels).transpose(1, 2)
    kernel = own.get_parameter("weight").T.reshape(WIDTH, SERIES.patch, SERIES.channels).transpose(1, 2)
    tokens_BDN = torch.nn.functional.conv1d(steps_BCT, kernel, own.get_parameter("bias"), stride=SERIES.patch)
    torch.testing.assert_close(own(torch.from_numpy(features)), tokens_BDN.transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_a_row_is_what_the_feature_tokenizer_of_the_paper_gives() -> None:
    """T_j = b_j + x_j W_j for numbers, T_j = b_j + e_j^T W_j for categories (arXiv 2106.11959, section 3.1)."""
    features = features_of("table", whole=True)
    own = both("table")[1]
    cells_BF = torch.from_numpy(features)
    bias_FD, weight_MD, embedding_KD = (own.get_parameter(part) for part in ("bias", "weight", "embedding"))
    tokens = [bias_FD[column] + cells_BF[:, column, None] * weight_MD[column] for column in range(2)]
    first = 0
    for column, category in enumerate(TABLE.categories, start=2):
        num_values = len(category.values)
        one_hot_BV = torch.nn.functional.one_hot(cells_BF[:, column].long(), num_values).float()
        tokens.append(bias_FD[column] + one_hot_BV @ embedding_KD[first : first + num_values])
        first += num_values
    torch.testing.assert_close(own(cells_BF), torch.stack(tokens, dim=1))
