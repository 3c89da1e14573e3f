from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lessen.stored.kernels import machine
from lessen.stored.linears import int8_linear
from lessen.stored.linears.int8_linear import Int8Linear


@pytest.mark.parametrize("activations", ["row", "tensor"])
def test_outputs_are_near_and_shapes_kept(activations):
    layer = nn.Linear(48, 20)
    made = Int8Linear.from_dense(layer, activations)
    with torch.no_grad():
        for shape in [(48,), (1, 48), (7, 48), (2, 3, 48), (0, 48), (33, 48)]:
            inputs = torch.randn(shape)
            assert made(inputs).shape == layer(inputs).shape
            if inputs.numel():
                error = (made(inputs) - layer(inputs)).norm() / layer(inputs).norm()
                assert float(error) < 0.03


def test_weights_are_on_the_symmetric_grid():
    layer = nn.Linear(16, 5, bias=False)
    with torch.no_grad():
        layer.weight[2] = 0.0
    made = Int8Linear.from_dense(layer)
    assert float((made.dequantise() - layer.weight.detach()).abs().max()) <= float(made.scales.max()) / 2 + 1e-7
    assert not bool(made.codes[2].any())
    assert int(made.codes.abs().max()) == 127


def test_integer_products_are_exact_where_inputs_are_on_the_grid():
    made = Int8Linear(4, 3)
    made.codes.copy_(torch.tensor([[1, 2, 3, 4], [-127, 0, 0, 127], [5, 5, 5, 5]]))
    made.scales.copy_(torch.tensor([0.5, 1.0, 2.0]))
    made.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    with torch.no_grad():
        assert made(torch.tensor([[127.0, -127.0, 64.0, 0.0]])).tolist() == [[33.5, -16129.0, 639.0]]


def test_by_row_an_example_does_not_depend_on_its_batch():
    made = Int8Linear.from_dense(nn.Linear(32, 16))
    inputs = torch.randn(9, 32)
    with torch.no_grad():
        alone = made(inputs[:1])
        assert torch.equal(made(inputs)[:1], alone)
        assert torch.equal(made(torch.cat([inputs, 1e4 * inputs]))[:1], alone)


def test_by_row_no_second_copy_of_the_codes_is_held_where_torch_multiplies_by_blocks(monkeypatch):
    made, inputs = Int8Linear.from_dense(nn.Linear(64, 32)), torch.randn(40, 64)
    with torch.no_grad():
        monkeypatch.setattr(int8_linear, "blocked", lambda: True)
        found = made(inputs)
        assert made.packed_bytes() == 0
        monkeypatch.setattr(int8_linear, "blocked", lambda: False)
        assert torch.allclose(made(inputs), found, rtol=1e-5, atol=1e-6)
        assert made.packed_bytes() > 0 or not machine.available()


def test_by_row_rows_are_multiplied_some_at_a_time(monkeypatch):
    monkeypatch.setattr(int8_linear, "blocked", lambda: True)
    made, inputs = Int8Linear.from_dense(nn.Linear(48, 20)), torch.randn(2, 45, 48)
    with torch.no_grad():
        whole = made(inputs)
        monkeypatch.setattr(int8_linear, "TOGETHER", 1)
        assert torch.equal(made(inputs), whole)


def test_the_packed_operand_follows_the_buffers_and_is_never_copied():
    made = Int8Linear.from_dense(nn.Linear(32, 16), "tensor")
    other = Int8Linear.from_dense(nn.Linear(32, 16), "tensor")
    inputs = torch.randn(4, 32)
    with torch.no_grad():
        made(inputs)
        assert made.packed_bytes() == 512
        assert copy.deepcopy(made).packed_bytes() == 0
        assert pickle.loads(pickle.dumps(made)).packed_bytes() == 0
        made.load_state_dict(other.state_dict())
        assert torch.equal(made(inputs), other(inputs))


def test_gradients_flow_to_the_input():
    made = Int8Linear.from_dense(nn.Linear(8, 3))
    inputs = torch.randn(2, 8, requires_grad=True)
    made(inputs).sum().backward()
    assert torch.allclose(inputs.grad, made.dequantise().sum(0).expand(2, 8), atol=1e-6)
    assert made.opaque_macs(inputs) == 2 * 8 * 3
