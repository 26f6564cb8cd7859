"""Numbers in few bits come back, and take no more bytes than they must."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdplug_logits.codec.packing import pack, packed_bytes, unpack, width_of


@given(bits=st.integers(1, 32), count=st.integers(1, 70), seed=st.integers(0, 1000))
def test_every_number_comes_back(bits, count, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 2**bits, (3, count), generator=generator)
    packed = pack(numbers, bits)
    assert packed.shape == (3, packed_bytes(count, bits))
    assert torch.equal(unpack(packed, count, bits), numbers)


@pytest.mark.parametrize("bits", [1, 7, 8, 18, 25, 32])
def test_the_largest_numbers_do_not_touch_their_neighbours(bits):
    numbers = torch.tensor([[0, 2**bits - 1] * 5])
    assert torch.equal(unpack(pack(numbers, bits), 10, bits), numbers)


def test_no_row_is_no_byte():
    assert pack(torch.zeros(0, 64, dtype=torch.int64), 18).shape == (0, 144)
    assert unpack(torch.zeros(0, 144, dtype=torch.uint8), 64, 18).shape == (0, 64)


@pytest.mark.parametrize(("count", "bits"), [(1, 1), (2, 1), (3, 2), (256, 8), (257, 9), (151_936, 18), (262_144, 18)])
def test_ids_take_as_many_bits_as_tell_them_apart(count, bits):
    assert width_of(count) == bits
