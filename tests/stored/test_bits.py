"""One packer for codes of 1 to 8 bits: what goes in comes out, in the layouts that tables always had."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.stored import bits
from lessen.stored.tables import rowwise

CODES = st.tuples(st.integers(1, 8), st.integers(0, 40), st.integers(0, 5), st.integers(0, 10**6))


def drawn(width, count, rows, seed):
    return torch.randint(0, 2**width, (rows, count), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@given(CODES)
@settings(max_examples=200, deadline=None)
def test_codes_come_back_and_lie_low_bits_first_without_gaps(case):
    width, count, rows, _ = case
    codes = drawn(*case)
    packed = bits.pack(codes, width)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, bits.row_bytes(count, width))
    assert torch.equal(bits.unpack(packed, width, count), codes)
    for row, held in zip(codes.tolist(), packed.tolist(), strict=True):
        number = sum(code << (width * place) for place, code in enumerate(row))
        assert number == int.from_bytes(bytes(held), "little")


@given(CODES)
@settings(max_examples=30, deadline=None)
def test_any_shape_and_strides_pack_row_by_row(case):
    width, count, rows, seed = case
    codes = drawn(width, count, rows * 3, seed).view(3, rows, count)
    packed = bits.pack(codes.transpose(0, 1), width)
    assert torch.equal(packed, bits.pack(codes, width).transpose(0, 1))
    assert torch.equal(bits.unpack(packed, width, count), codes.transpose(0, 1))
    assert torch.equal(bits.pack(codes[0, 0], width), bits.pack(codes, width)[0, 0]) if rows else True


@pytest.mark.parametrize("width", rowwise.BITS)
def test_the_layout_is_that_of_torch_s_row_wise_operators(width):
    weight = torch.randn(7, 13)
    packed = rowwise.pack(weight, width)
    codes = rowwise.codes(packed, 16 if width < 8 else 13, width)
    held = packed[:, : packed.shape[1] - (8 if width == 8 else 4)]
    assert torch.equal(bits.pack(codes, width)[:, : held.shape[1]], held)


@pytest.mark.parametrize("width", [0, 9, -1])
def test_other_widths_are_refused(width):
    for act in (lambda: bits.pack(torch.zeros(1, 1), width), lambda: bits.unpack(torch.zeros(1, 1), width, 1)):
        with pytest.raises(ValueError, match="1 to 8 bits"):
            act()


def test_set_bits_are_counted():
    words = torch.tensor([0, 1, 2**62, 2**63 - 1, 0x5555555555555555])
    assert bits.ones(words).tolist() == [0, 1, 1, 63, 32]
