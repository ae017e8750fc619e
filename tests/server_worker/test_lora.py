from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from cutlayer.server_worker.lora import LoraLinear, merged_weights


def linear(inputs: int = 6, outputs: int = 10, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)


def added_to(base: nn.Linear, rank: int = 2, alpha: float = 6.0) -> LoraLinear:
    """Return a map whose addition is no longer zero."""
    lora = LoraLinear(base, rank, alpha).double()
    nn.init.normal_(lora.lora_b)
    return lora


def test_it_begins_as_the_map_that_it_is_added_to() -> None:
    base, x = linear(), torch.randn(3, 4, 6, dtype=torch.float64)
    wanted = base(x)
    assert torch.equal(LoraLinear(base, 2, 16.0).double()(x), wanted)


def test_only_the_addition_trains() -> None:
    lora = LoraLinear(linear(), 2, 16.0)
    assert {name for name, value in lora.named_parameters() if value.requires_grad} == {"lora_a", "lora_b"}
    assert {name for name, _ in lora.named_parameters()} == {"weight", "bias", "lora_a", "lora_b"}


def test_a_map_without_bias_stays_without() -> None:
    lora = added_to(linear(bias=False))
    assert {name for name, _ in lora.named_parameters()} == {"weight", "lora_a", "lora_b"}
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(lora(x), functional.linear(x, lora.merged_weight()))


def test_it_is_the_sum_of_the_paper_and_has_its_gradients() -> None:
    lora, x = added_to(linear()), torch.randn(5, 6, dtype=torch.float64)
    a_RI, b_OR = (part.detach().clone().requires_grad_() for part in (lora.lora_a, lora.lora_b))
    wanted = functional.linear(x, lora.weight + 6.0 / 2 * b_OR @ a_RI, lora.bias)
    torch.testing.assert_close(lora(x), wanted)
    torch.autograd.backward(wanted.square().sum())
    torch.autograd.backward(lora(x).square().sum())
    torch.testing.assert_close(lora.lora_a.grad, a_RI.grad)
    torch.testing.assert_close(lora.lora_b.grad, b_OR.grad)
    assert lora.weight.grad is None


def test_a_keeps_the_variance_of_its_input() -> None:
    torch.manual_seed(0)
    lora = LoraLinear(nn.Linear(256, 512), 64, 16.0)
    variance = functional.linear(torch.randn(200, 256), lora.lora_a).var()
    assert 0.9 < variance < 1.1


def test_merged_weights_load_into_the_model_without_additions() -> None:
    base = nn.Sequential(linear(6, 10), nn.GELU(), linear(10, 4))
    tuned = nn.Sequential(added_to(linear(6, 10)), nn.GELU(), linear(10, 4))
    base.load_state_dict(merged_weights(tuned))
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(base(x), tuned(x))


def test_merged_weights_are_copies() -> None:
    lora = added_to(linear())
    merged = merged_weights(lora)
    before = merged["weight"].clone()
    with torch.no_grad():
        lora.weight.zero_()
        lora.lora_b.zero_()
    assert torch.equal(merged["weight"], before)
