"""Samples with different numbers of tokens: what is there travels in a row, and comes back to its places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.ragged_tokens import is_ragged, num_present, pack_rows, tensor_shape, unpack_rows
from cutlayer.broker.sample_refs import pack_positions, unpack_positions

WIDTH = 3


def places(num_tokens: int, num_places: int, rows: list[set[int]]) -> NDArray[np.intp]:
    """Return positions of samples that have these tokens."""
    return np.array([(sorted(row) + [num_tokens] * num_places)[:num_places] for row in rows], dtype=np.intp)


@given(data=st.data(), num_tokens=st.integers(1, 20))
def test_tokens_come_back_to_their_places(data: st.DataObject, num_tokens: int) -> None:
    num_places = data.draw(st.integers(1, num_tokens))
    one = st.sets(st.integers(0, num_tokens - 1), max_size=num_places)
    rows = data.draw(st.lists(one, min_size=1, max_size=6))
    positions_FK = places(num_tokens, num_places, rows)
    read_FK = unpack_positions(pack_positions(positions_FK, num_tokens), len(rows), num_tokens, num_places)
    assert np.array_equal(read_FK, positions_FK)
    rng = np.random.default_rng(0)
    tokens_FKD = rng.standard_normal((*positions_FK.shape, WIDTH)).astype(np.float32)
    tokens_FKD[positions_FK == num_tokens] = 0
    packed = pack_rows(tokens_FKD, positions_FK, num_tokens)
    assert packed.shape == tensor_shape(positions_FK, num_tokens, WIDTH)
    assert np.array_equal(unpack_rows(packed, positions_FK, num_tokens), tokens_FKD)
    assert is_ragged(positions_FK, num_tokens) == any(len(row) < num_places for row in rows)
    assert num_present(positions_FK, num_tokens) == sum(map(len, rows))


def test_full_samples_travel_as_they_are() -> None:
    tokens_FKD = np.ones((2, 4, WIDTH), np.float32)
    assert pack_rows(tokens_FKD, places(9, 4, [{0, 2, 4, 8}, {1, 2, 3, 4}]), 9) is tokens_FKD


def test_samples_without_any_token_travel_as_nothing() -> None:
    positions_FK = places(4, 4, [set(), set()])
    packed = pack_rows(np.zeros((2, 4, WIDTH), np.float32), positions_FK, 4)
    assert packed.shape == (1, 0, WIDTH)
    assert unpack_rows(packed, positions_FK, 4).shape == (2, 4, WIDTH)


def test_a_sample_has_no_more_tokens_than_places() -> None:
    masks = pack_positions(places(8, 4, [{0, 1, 2, 3}]), 8)
    with pytest.raises(MalformedMessage, match="more than 3 of 8 tokens"):
        unpack_positions(masks, 1, 8, 3)


def test_more_tokens_than_an_axis_may_have_travel_padded() -> None:
    num_samples, num_tokens = 400, 200
    positions_FK = np.tile(np.arange(num_tokens, dtype=np.intp), (num_samples, 1))
    positions_FK[0, -1] = num_tokens
    tokens_FKD = np.ones((num_samples, num_tokens, 1), np.float32)
    tokens_FKD[0, -1] = 0
    packed = pack_rows(tokens_FKD, positions_FK, num_tokens)
    assert packed.shape == tensor_shape(positions_FK, num_tokens, 1) == (num_samples, num_tokens, 1)
    assert np.array_equal(unpack_rows(packed, positions_FK, num_tokens), tokens_FKD)
