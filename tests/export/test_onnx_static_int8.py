"""Static int8 layers leave as QDQ: int8 weights in the file, the graph as written equal to torch, fused when it runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.method import Context
from lessen.methods.weights.quarot import QuaRot
from lessen.methods.weights.static_int8 import StaticInt8Layers
from lessen.task import Task

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from lessen.export.onnx import export_onnx, serve  # noqa: E402


class Pictures(Task):
    name, metrics = "pictures", {}

    def build(self):
        return net()

    def batches(self, split, seed=0):
        draw = torch.Generator().manual_seed(0)
        return [(torch.randn(4, 3, 16, 16, generator=draw), torch.zeros(4)) for _ in range(2)]


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16),
        nn.ReLU6(),
        nn.Conv2d(16, 32, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


def test_convolutions_and_linear_layers_are_int8_in_the_file_and_fused_when_it_runs(tmp_path):
    made = StaticInt8Layers().apply(net(), Pictures(), Context())
    batch = Pictures().example_batch()[0]
    assert export_onnx(made, batch, tmp_path / "net.onnx") < 1e-5
    graph = onnx.load(tmp_path / "net.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") == 4
    assert kinds.count("DequantizeLinear") == 8
    stored = sum(len(w.raw_data) for w in graph.initializer if w.data_type == onnx.TensorProto.INT8)
    assert stored >= sum(m.codes.numel() for m in made.modules() if hasattr(m, "codes"))
    with torch.no_grad():
        wanted = made(batch)
    found = torch.from_numpy(serve(tmp_path / "net.onnx")(batch))  # as a server runs it, with integer kernels
    assert float((found - wanted).abs().max()) < 0.03 * float(wanted.abs().max())


def test_a_rotated_tower_leaves_too(tmp_path):
    from lessen.testing.colours import ColourTask

    task = ColourTask()
    torch.manual_seed(0)
    made = QuaRot().apply(task.build().eval(), task, Context())
    assert export_onnx(made, task.example_batch()[0], tmp_path / "vit.onnx") < 1e-4
