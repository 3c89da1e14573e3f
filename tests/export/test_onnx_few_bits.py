"""Encoders with packed layers as ONNX: MatMulNBits holds our values, and onnxruntime answers as torch does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime", reason="the [onnx] extra is not installed")
import onnx

from host_models import host, inputs
from lessen.errors import ConfigError
from lessen.export.matmul_nbits import Blocks, values_of
from lessen.export.onnx import export_onnx
from lessen.method import Context
from lessen.methods.weights.rtn import RTN
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.testing.toys import TableTask


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(96, 40), nn.Linear(40, 3, bias=False)

    def forward(self, inputs):
        return self.two(torch.relu(self.one(inputs)))


def rounded(model, **knobs):
    return RTN(min_weights=1, **knobs).apply(model, TableTask(), Context()).eval()


@pytest.mark.parametrize(
    "knobs", [{"zeros": "whole"}, {"bits": 3, "symmetric": True}, {"bits": 3, "symmetric": True, "scale_bits": 6}]
)
def test_packed_layers_are_matmul_nbits_and_hold_our_values(knobs, tmp_path):
    torch.manual_seed(0)
    made = rounded(Net().eval(), group=32, **knobs)
    assert export_onnx(made, torch.randn(6, 5, 96), tmp_path / "net.onnx") < 1e-4
    graph = onnx.load(tmp_path / "net.onnx").graph
    held = {one.name: onnx.numpy_helper.to_array(one).copy() for one in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    layers = [m for m in made.modules() if isinstance(m, GroupQuantizedLinear)]
    assert len(nodes) == len(layers) == 2
    for node, layer in zip(nodes, layers, strict=True):
        known = {one.name: one.i for one in node.attribute}
        parts = [held[name] for name in node.input[1:]] + [None] * (4 - len(node.input))
        blocks = Blocks(*parts, known["bits"], known["block_size"], known["K"], known["N"])
        assert torch.equal(values_of(blocks), layer.dequantise())


@pytest.mark.slow
def test_an_encoder_with_packed_layers_and_embedding_runs_at_any_batch_size(tmp_path):
    made = rounded(host("bert"), group=32, symmetric=True, table_bits=8)
    difference = export_onnx(made, inputs("bert"), tmp_path / "bert.onnx")
    nodes = onnx.load(tmp_path / "bert.onnx").graph.node
    packed = sum(isinstance(module, GroupQuantizedLinear) for module in made.modules())
    assert difference < 1e-4
    assert sum(node.op_type == "MatMulNBits" for node in nodes) == packed > 4


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({}, "zeros=whole or symmetric=true"),
        ({"scale_bits": 6}, "with symmetric=true"),
        ({"activations": "int8"}, "activations=float"),
    ],
)
def test_what_the_operator_cannot_hold_is_one_line(knobs, said, tmp_path):
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=said):
        export_onnx(rounded(Net().eval(), group=32, **knobs), torch.randn(6, 96), tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()
