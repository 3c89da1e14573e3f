"""Sparse layers: bytes by the formula, the dense layer's answers, and what an artifact may not say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lessen.errors import InputError
from lessen.methods.sites import module_bytes
from lessen.sparsity.pattern import Pattern
from lessen.stored.kernels import sparse_products
from lessen.stored.linears.int8_linear import Int8Linear
from lessen.stored.linears.sparse import SparseConv, SparseLinear, from_matrix, to_matrix
from lessen.stored.linears.sparse_matrix import SparseMatrix, sparse_bytes

SIZES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


def layer(inputs=64, outputs=24):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


@pytest.mark.parametrize("values", SIZES)
@pytest.mark.parametrize("text", ["2:4", "1:4", "1:8", "3:8", "1:16", "1:32"])
def test_n_of_m_comes_back_and_takes_what_the_formula_says(text, values):
    pattern, weight = Pattern.parse(text), layer().weight.detach()
    mask = pattern.mask(weight.abs())
    made = SparseMatrix.of(weight, mask, values, pattern.n, pattern.m)
    kept = 64 // pattern.m * pattern.n
    places = math.ceil(kept * math.ceil(math.log2(pattern.m)) / 8)
    assert module_bytes(made) == 24 * (kept * SIZES[values] + places + 4 * (values == "int8"))
    assert module_bytes(made) == sparse_bytes(24, 64, 24 * kept, values, pattern.n, pattern.m)
    if values == "fp32":
        assert torch.equal(made.dequantise(), weight * mask)
    else:
        steps = weight.mul(mask).abs().amax(1, keepdim=True) / (254 if values == "int8" else 2**8)
        assert bool(((made.dequantise() - weight * mask).abs() <= steps + 1e-9).all())
    assert torch.equal(made.mask(slice(0, 24)), mask)
    made.check()


@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("inputs", [64, 61])
def test_any_places_come_back_row_by_row(inputs, density):
    weight = layer(inputs).weight.detach()
    mask = torch.rand(weight.shape) < density
    made = SparseMatrix.of(weight, mask)
    assert module_bytes(made) == 24 * math.ceil(inputs / 8) + 25 * 4 + 4 * int(mask.sum())
    assert torch.equal(made.decoded(slice(5, 9)), (weight * mask)[5:9])
    made.check()


def test_layers_answer_as_the_masked_dense_ones():
    dense = layer()
    mask = Pattern(0.4).mask(dense.weight.abs())
    made = SparseLinear.around(dense, SparseMatrix.of(dense.weight, mask))
    inputs = torch.randn(3, 5, 64)
    expected = nn.functional.linear(inputs, dense.weight * mask, dense.bias)
    assert torch.equal(made(inputs), expected)
    with pytest.raises(InputError, match="64 inputs was given 7"):
        made(torch.randn(3, 7))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("kind", "sides"), [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)])
def test_convolutions_have_runs_along_their_channels(kind, sides, groups):
    torch.manual_seed(0)
    dense = kind(8, 6, 3, stride=2, padding=1, groups=groups)
    pattern = Pattern.parse("1:4")
    matrix = to_matrix(dense.weight.detach())
    assert torch.equal(from_matrix(matrix, dense.kernel_size), dense.weight)
    mask = pattern.mask(matrix.abs())
    made = SparseConv.around(dense, SparseMatrix.of(matrix, mask, "fp32", 1, 4))
    left = made.dequantise()
    runs = left.movedim(1, -1).reshape(-1, 4)
    assert bool(((runs != 0).sum(1) == 1).all())
    assert torch.equal(runs.abs().amax(1), dense.weight.movedim(1, -1).reshape(-1, 4).abs().amax(1))
    inputs = torch.randn(2, 8, *[7] * sides)
    with torch.no_grad():
        dense.weight.copy_(left)
        assert torch.equal(made(inputs), dense(inputs))
    with pytest.raises(InputError, match="8 channels"):
        made(torch.randn(2, 4, *[7] * sides))


def test_a_mask_without_the_pattern_is_refused():
    weight = layer().weight.detach()
    mask = Pattern.parse("2:4").mask(weight)
    mask[0, :8] = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0])
    with pytest.raises(ValueError, match="does not keep 2"):
        SparseMatrix.of(weight, mask, "fp32", 2, 4)
    with pytest.raises(ValueError, match="no multiple"):
        SparseMatrix(4, 10, 20, "fp32", 2, 4)
    with pytest.raises(ValueError, match="keeps 16 values"):
        SparseMatrix(4, 8, 15, "fp32", 2, 4)


def test_damaged_places_are_refused():
    weight = layer().weight.detach()
    made = SparseMatrix.of(weight, Pattern.parse("2:4").mask(weight), "fp32", 2, 4)
    made.places[3, 0] = 0  # one column twice
    with pytest.raises(ValueError, match="do not rise"):
        made.check()
    made = SparseMatrix.of(layer(60).weight.detach(), layer(60).weight > 0)
    made.bits[0, -1] |= 0x80
    with pytest.raises(ValueError, match="beyond the columns"):
        made.check()
    made = SparseMatrix.of(weight, weight > 0)
    made.bits[0, 0] ^= 1
    with pytest.raises(ValueError, match="starts"):
        made.check()
    made = SparseMatrix.of(weight, weight > 0, "int8")
    made.scales[0] = 0
    with pytest.raises(ValueError, match="scales"):
        made.check()


def int8_twins(inputs, outputs, density, bias=True):
    """A sparse layer with int8 activations, and a dense int8 layer of the same codes."""
    torch.manual_seed(0)
    dense = nn.Linear(inputs, outputs, bias)
    mask = Pattern(density).mask(torch.rand(outputs, inputs))
    made = SparseLinear.around(dense, SparseMatrix.of(dense.weight, mask, "int8"), "int8")
    twin = Int8Linear(inputs, outputs)
    twin.codes.copy_(made.matrix.held(slice(0, outputs)))
    twin.scales.copy_(made.matrix.scales)
    if bias:
        twin.bias.copy_(dense.bias)
    return made, twin


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (61, 70), (257, 130), (4, 3), (512, 1)])
@pytest.mark.parametrize("density", [0.02, 0.5, 0.95])
def test_int8_products_are_those_of_the_dense_layer_bit_for_bit(inputs, outputs, density, monkeypatch):
    made, twin = int8_twins(inputs, outputs, density)
    with torch.no_grad():
        for rows in (1, 3, 4, 9):
            given = torch.randn(rows, inputs) * torch.logspace(-3, 3, rows).unsqueeze(1)
            given[0, 0] = 0.0 if rows == 3 else given[0, 0]
            found = made(given)
            assert torch.equal(found, twin._by_row(given))
            with monkeypatch.context() as patch:
                patch.setattr(sparse_products, "possible", lambda: False)
                assert torch.equal(made(given), found)
        assert made(torch.zeros(2, 0, inputs)).shape == (2, 0, outputs)
        assert torch.equal(made(torch.zeros(1, inputs)), twin.bias.unsqueeze(0))


@pytest.mark.skipif(not sparse_products.possible(), reason="needs the extra kernels, AVX-512 with VBMI2 and VNNI")
def test_the_kernel_is_used_counts_its_bytes_and_sees_a_changed_buffer():
    made, twin = int8_twins(512, 256, 0.25, bias=False)
    given = torch.randn(5, 512)
    with torch.no_grad():
        made(given)
        kept = int(made.matrix.mask(slice(0, 256)).sum())
        assert made.packed_bytes() == 512 * 256 // 8 + kept + 64 + 4 * 8 + 3 * 256 * 4
        assert not made.storage_only()
        made.matrix.values.neg_()
        twin.codes.neg_()
        assert torch.equal(made(given), twin._by_row(given))
    given.requires_grad_()
    made(given).sum().backward()
    assert torch.allclose(given.grad, made.dequantise().sum(0).expand_as(given.grad), atol=1e-5)


@pytest.mark.skipif(not sparse_products.possible(), reason="needs the extra kernels, AVX-512 with VBMI2 and VNNI")
def test_largest_sums_do_not_saturate():
    mask = torch.rand(64, 4096) < 0.9
    codes = (127 * torch.ones(64, 4096, dtype=torch.int8)) * mask
    operand = sparse_products.SparseOperand.of(codes, mask, torch.ones(64), None)
    for sign in (1, -1):
        rows = torch.full((5, 4096), sign * 127.0)
        assert torch.equal(operand.multiply(rows), (rows.long() @ codes.long().t()).float())


def test_int8_inputs_need_int8_values():
    weight = layer().weight.detach()
    with pytest.raises(ValueError, match="need int8 values, found fp32"):
        SparseLinear(SparseMatrix.of(weight, weight > 0), activations="int8")
