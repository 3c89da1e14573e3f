"""Sparse layers leave as ONNX with the bytes that they have here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.method import Context
from lessen.methods.weights.magnitude_sparsity import MagnitudeSparsity
from lessen.methods.weights.weight_clustering import WeightClustering
from lessen.task import Task

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from lessen.export.onnx import export_onnx  # noqa: E402


class Pictures(Task):
    name, metrics = "pictures", {}

    def build(self):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(8, 64, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        ).eval()

    def batches(self, split, seed=0):
        draw = torch.Generator().manual_seed(0)
        return [(torch.randn(4, 8, 16, 16, generator=draw), torch.zeros(4))]


@pytest.mark.parametrize(
    "knobs",
    [
        {"pattern": "2:4"},
        {"pattern": "1:8", "values": "int8", "activations": "int8"},
        {"density": 0.1, "values": "fp16"},
    ],
)
def test_sparse_layers_are_spread_in_the_graph(tmp_path, knobs):
    task = Pictures()
    made = MagnitudeSparsity(**knobs, min_weights=64).apply(task.build(), task, Context())
    path = tmp_path / "net.onnx"
    assert export_onnx(made, task.example_batch()[0], path) < 1e-4
    dense = tmp_path / "dense.onnx"
    export_onnx(task.build(), task.example_batch()[0], dense)
    held = sum(t.numel() * t.element_size() for t in made.state_dict().values())
    assert path.stat().st_size < held + 30_000  # the graph itself; nothing was spread out in the file
    assert path.stat().st_size < 0.8 * dense.stat().st_size


@pytest.mark.parametrize("clusters", [5, 16])
def test_clustered_layers_are_looked_up_in_the_graph(tmp_path, clusters):
    task = Pictures()
    made = WeightClustering(clusters=clusters).apply(task.build(), task, Context())
    path = tmp_path / "net.onnx"
    assert export_onnx(made, task.example_batch()[0], path) < 1e-4
    held = sum(t.numel() * t.element_size() for t in made.state_dict().values())
    assert path.stat().st_size < held + 30_000
