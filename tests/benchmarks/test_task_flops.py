"""Operations are counted as on paper."""

from __future__ import annotations

import pytest
import torch
from benchmarks.task_flops import Work, step_flops, vit_b16, work_of
from timm.layers.attention import Attention
from torch import nn

from support.small_run import small_settings


def test_a_linear_map_takes_two_for_each_weight_and_row_and_twice_that_back() -> None:
    linear = nn.Linear(5, 7)
    forward, step = step_flops(linear, torch.zeros(3, 5, requires_grad=True))
    assert forward == 2 * 3 * 5 * 7
    assert step == 3 * forward


def test_the_first_linear_map_needs_no_gradient_of_its_inputs() -> None:
    forward, step = step_flops(nn.Linear(5, 7), torch.zeros(3, 5))
    assert step == 2 * forward


def test_attention_takes_its_maps_and_two_products_of_all_pairs_of_tokens() -> None:
    num_tokens, width = 6, 8
    forward, step = step_flops(Attention(width, num_heads=2), torch.zeros(1, num_tokens, width, requires_grad=True))
    maps = 2 * num_tokens * width * (3 * width) + 2 * num_tokens * width * width
    assert forward == maps + 2 * 2 * num_tokens * num_tokens * width
    assert step == 3 * forward


def test_an_agent_does_the_products_of_its_tokenizers_and_no_other() -> None:
    work = work_of(small_settings())
    assert work.tokenize == 2 * (2 * 4 * 4 * 16)  # two modalities of 4 tokens, patches of 4 values, width 16
    assert work.forward < work.step <= 3 * work.forward
    assert work.is_sent_once
    assert work.raw_bytes == 16 + 2 * (3 * 8 + 16)


def test_ratios_count_what_is_sent_once_once() -> None:
    work = Work("m", 10, True, 1, tokenize=5, forward=100, step=300, raw_bytes=1)
    assert work.client_flops == 10 * 305
    assert work.ratio(is_sent_once=False) == 61
    assert work.ratio(is_sent_once=True) == 610


@pytest.mark.slow
def test_a_client_of_vit_b16_computes_over_250_times_what_an_agent_does() -> None:
    work = work_of(vit_b16())
    # timm's count: the modality's embedding has come, and the class token's position is part of that token.
    assert work.num_parameters + 768 * 16 * 16 * 3 + 768 == 86_567_656
    assert work.tokenize == 2 * 196 * 768 * 768
    assert work.ratio(is_sent_once=False) > 250
