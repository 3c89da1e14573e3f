"""The form against a decoding of its own, by loops; its bytes by arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.errors import InputError
from lessen.methods.sites import module_bytes
from lessen.stored.linears import decoded
from lessen.stored.linears.group_grid import WIDTHS, GroupGrid
from lessen.stored.linears.group_quantized import GroupQuantizedLinear, layer_bytes


def made_of(bits, group, symmetric, inputs=37, outputs=6, bias=True):
    torch.manual_seed(bits)
    groups = -(-inputs // group)
    scales = (torch.rand(outputs, groups) / 2**bits).half()
    grid = GroupGrid(bits, group, scales, None if symmetric else torch.randn(outputs, groups).half())
    codes = torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8)
    layer = nn.Linear(inputs, outputs, bias=bias)
    return layer, grid, codes, GroupQuantizedLinear.from_codes(layer, grid, codes)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_values_are_scale_times_code_and_a_minimum(bits, symmetric):
    layer, grid, codes, made = made_of(bits, 16, symmetric)
    dense = made.dequantise()
    for row in range(6):
        for column in range(37):
            scale, code = grid.scales[row, column // 16].float(), codes[row, column].float()
            if symmetric:
                expected = (code - 2 ** (bits - 1)) * scale
            else:
                expected = code * scale + grid.minimums[row, column // 16].float()
            assert dense[row, column] == expected
    inputs = torch.randn(2, 3, 37)
    assert torch.allclose(made(inputs), nn.functional.linear(inputs, dense, layer.bias), rtol=1e-5, atol=1e-5)
    assert torch.equal(grid.codes(dense), codes)


@pytest.mark.parametrize(("bias", "symmetric"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("bits", WIDTHS)
def test_bytes_are_codes_scales_minimums_and_bias(bits, symmetric, bias):
    layer, *_, made = made_of(bits, 16, symmetric, bias=bias)
    row = -(-37 * bits // 8) + 3 * (2 if symmetric else 4)
    assert module_bytes(made) == layer_bytes(layer, bits, 16, symmetric) == 6 * (row + 4 * bias)


def test_decoding_some_rows_at_a_time_changes_nothing(monkeypatch):
    *_, made = made_of(3, 16, False)
    inputs = torch.randn(4, 37)
    whole, dense = made.decoded_product(inputs), made.dequantise()
    monkeypatch.setattr(decoded, "DECODED", 80)
    assert [part.stop - part.start for part in decoded.row_parts(6, 37)] == [2, 2, 2]
    assert torch.equal(made.dequantise(), dense)
    assert torch.allclose(made.decoded_product(inputs), whole, atol=1e-5)


def test_answers_have_the_type_of_the_inputs_and_gradients_reach_them():
    *_, made = made_of(4, 16, False)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert made(torch.ones(2, 37, dtype=dtype)).dtype == dtype
    inputs = torch.randn(2, 37, requires_grad=True)
    made(inputs).sum().backward()
    assert torch.allclose(inputs.grad, made.dequantise().sum(0).expand(2, 37), atol=1e-5)


def test_what_does_not_fit_is_refused():
    *_, made = made_of(4, 16, False)
    with pytest.raises(InputError, match="37 inputs was given 36"):
        made(torch.ones(2, 36))
    made.check()
    made.minimums[1, 1] = torch.inf
    with pytest.raises(ValueError, match="minimums hold NaN or infinity"):
        made.check()
    for changed in ({"bits": 7}, {"bits": 4.0}, {"group": 38}, {"group": 0}, {"symmetric": 1}, {"bias": None}):
        with pytest.raises((ValueError, TypeError), match=next(iter(changed))):
            GroupQuantizedLinear.from_config({**made.config(), **changed})
