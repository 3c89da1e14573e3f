"""Scales that are codes themselves: a closed form, coding twice, the plain form's products, damaged state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.artifact import folder as artifact
from lessen.errors import ConfigError
from lessen.export.codes import coded
from lessen.method import Context
from lessen.methods.weights._shared.grids import fit_grid, quantise
from lessen.methods.weights.rtn import RTN
from lessen.stored.linears.coded_scales import CodedScalesLinear, decode, encode, on_coded_scales
from lessen.stored.linears.group_quantized import GroupQuantizedLinear, layer_bytes
from lessen.testing.toys import TableTask


def made(inputs=200, out=9, bits=3, group=32, symmetric=False, scale_bits=6, activations="float", seed=0):
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, out)
    grid = fit_grid(layer.weight, bits, group, symmetric, "search", scale_bits=scale_bits)
    return layer, CodedScalesLinear.from_codes(layer, grid, quantise(layer.weight, grid), activations)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_what_was_coded_comes_back_with_the_same_codes(bits):
    torch.manual_seed(bits)
    values = torch.rand(50, 12) * torch.logspace(-5, 3, 50)[:, None]
    values[7], values[8, 3:] = 0, 0
    codes, largest = encode(values, bits)
    known = decode(codes, largest, bits)
    again, same = encode(known, bits)
    assert torch.equal(again, codes)
    assert torch.equal(same, largest)
    top = values.amax(1, keepdim=True)
    near = (known.float() - values).abs() <= top / (2**bits - 1) / 2 + 2e-3 * top
    assert (near | (top < 2.0**-16)).all()
    assert torch.equal(encode(-values, bits)[0], codes)


def test_no_scale_vanishes_and_minimums_stay_below_zero():
    torch.manual_seed(0)
    weight = torch.randn(6, 96) * 1e-3
    weight[:, :32] *= 1000  # the other groups have scales far below one part of the largest
    weight[0, 64:] = weight[0, 64:].abs() + 1  # a group above zero
    grid = fit_grid(weight, 3, 32, False, "minmax", scale_bits=4)
    assert (grid.scales > 0).all()
    assert (grid.minimums <= 0).all()
    assert torch.equal(on_coded_scales(grid, 4).scales, grid.scales)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("inputs", [200, 192])
def test_it_takes_the_bytes_that_were_said_and_stands_for_what_was_fitted(symmetric, inputs):
    layer, small = made(inputs, symmetric=symmetric)
    assert sum(t.numel() * t.element_size() for t in small.buffers()) == layer_bytes(layer, 3, 32, symmetric, 6)
    grid = fit_grid(layer.weight, 3, 32, symmetric, "search", scale_bits=6)
    assert torch.equal(small.scales, grid.scales)
    assert torch.equal(small.dequantise(), grid.values(quantise(layer.weight, grid)))
    groups = -(-inputs // 32)
    each = -(-groups * 6 // 8) + 2
    assert layer_bytes(layer, 3, 32, symmetric, 6) == 9 * (-(-inputs * 3 // 8) + (1 if symmetric else 2) * each + 4)


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_products_are_those_of_the_plain_form(activations):
    layer, small = made(activations=activations)
    plain = GroupQuantizedLinear(200, 9, 3, 32, activations=activations)
    plain.codes.copy_(small.codes)
    plain.scales.copy_(small.scales)
    plain.minimums.copy_(small.minimums)
    plain.bias.copy_(layer.bias)
    inputs = torch.randn(5, 200)
    with torch.no_grad():
        assert torch.equal(small(inputs), plain(inputs))
        small.largest_scale.mul_(2)  # a kernel's panels follow
        assert not torch.equal(small(inputs), plain(inputs))
    held = coded(small)  # what containers are written from
    assert torch.equal(held.grid.values(held.codes), small.dequantise())


def test_six_bits_at_32_err_less_than_fp16_at_96_in_about_their_bytes():
    torch.manual_seed(0)
    layer = nn.Linear(1536, 64)
    layer.weight.data = torch.distributions.StudentT(5.0).sample((64, 1536)) * 0.02
    layer.weight.requires_grad_(False)
    errors = {}
    for group, scale_bits in ((96, None), (32, 6)):
        grid = fit_grid(layer.weight, 3, group, False, "search", scale_bits=scale_bits)
        errors[group] = float((grid.values(quantise(layer.weight, grid)) - layer.weight).square().sum())
    assert errors[32] < 0.85 * errors[96]
    assert layer_bytes(layer, 3, 32, False, 6) < 1.02 * layer_bytes(layer, 3, 96, False)


def test_a_recipe_makes_it_saves_it_and_gives_it_back(tmp_path):
    task = TableTask()
    model = task.reference(seed=0)
    small = RTN(bits=4, group=16, scale_bits=6, min_weights=64).apply(model, task, Context())
    assert any(isinstance(module, CodedScalesLinear) for module in small.modules())
    artifact.save(tmp_path / "a", small, task.build())
    loaded = artifact.load(tmp_path / "a", model=task.build())
    batch = task.example_batch()
    with torch.no_grad():
        assert torch.equal(task.forward(loaded, batch), task.forward(small, batch))


def test_knobs_that_contradict_are_refused():
    with pytest.raises((ConfigError, ValueError), match="zeros=whole"):
        RTN(scale_bits=6, zeros="whole")


def test_damaged_state_is_named():
    _, small = made()
    small.largest_minimum[0] = float("nan")
    with pytest.raises(ValueError, match="largest_minimum"):
        small.check_values()
