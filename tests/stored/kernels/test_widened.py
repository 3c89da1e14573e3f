"""Few-bit weights times float32 rows: against decoded weights in float64, and one row against many."""

import pytest
import torch
from torch import nn

from lessen.stored.kernels import machine
from lessen.stored.kernels.dots import Machine
from lessen.stored.kernels.operands import Operand, here
from lessen.stored.linears.group_grid import GroupGrid, decode
from lessen.stored.linears.group_quantized import GroupQuantizedLinear

pytestmark = pytest.mark.skipif(not machine.available(), reason="needs llvmlite and torch on GNU OpenMP")
MACHINES = [here(), Machine("avx2", 8), Machine("plain", 8)]


def made(bits, out, inputs, group, symmetric):
    generator = torch.Generator().manual_seed(bits)
    groups = -(-inputs // group)
    codes = torch.randint(0, 1 << bits, (out, inputs), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(out, groups, generator=generator) + 0.1).half()
    return codes, scales, None if symmetric else torch.randn(out, groups, generator=generator).half()


@pytest.mark.parametrize("target", MACHINES, ids=lambda one: one.dots)
@pytest.mark.parametrize(
    ("bits", "inputs", "group"), [(2, 96, 32), (3, 100, 33), (4, 192, 64), (5, 64, 64), (8, 70, 35)]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_products_are_those_of_decoded_weights(target, bits, inputs, group, symmetric):
    codes, scales, minimums = made(bits, 37, inputs, group, symmetric)
    operand = Operand.of(codes, scales, minimums, torch.ones(37), bits, group, target=target, floats=True)
    rows = torch.randn(11, inputs, generator=torch.Generator().manual_seed(0)) * 3
    each = [one.repeat_interleave(group, 1)[:, :inputs] if one is not None else None for one in (scales, minimums)]
    weight = decode(codes, *(None if one is None else one.float() for one in each), bits)
    found, expected = operand.multiply(rows), rows.double() @ weight.double().T + 1
    bound = float((rows.abs().double() @ weight.abs().double().T).max())
    assert float((found - expected).abs().max()) <= 2e-6 * bound
    assert torch.equal(torch.cat([operand.multiply(row[None]) for row in rows]), found)


def test_a_layer_takes_it_and_leaves_gradients_to_operators(monkeypatch):
    codes, scales, minimums = made(4, 24, 96, 32, False)
    layer = GroupQuantizedLinear.from_codes(nn.Linear(96, 24), GroupGrid(4, 32, scales, minimums), codes)
    inputs = torch.randn(2, 3, 96)
    with torch.no_grad():
        found = layer(inputs)
    assert not layer.storage_only()
    assert layer.packed_bytes() == layer.operand().bytes > 0
    through = inputs.clone().requires_grad_()
    layer(through).sum().backward()
    assert torch.allclose(through.grad[0, 0], layer.dequantise().sum(0), atol=1e-3)
    monkeypatch.setattr(machine, "available", lambda: False)
    assert layer.storage_only()
    with torch.no_grad():
        assert torch.allclose(layer(inputs), found, rtol=1e-4, atol=1e-3)
