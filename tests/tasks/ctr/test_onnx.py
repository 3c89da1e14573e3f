from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lessen.data.columns import IdField, Layout
from lessen.errors import EnvironmentFault, GateFailed
from lessen.stored.fields import Segment
from lessen.stored.quantized_embedding import QuantizedEmbedding
from lessen.tasks.ctr import onnx as exporter
from lessen.tasks.ctr.models import MODELS
from lessen.tasks.ctr.onnx import PackedRows, export_onnx, serve

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")

LAYOUT = Layout(
    (
        IdField("item", "categorical", 0, 1, "item"),
        IdField("tags", "multi", 1, 3, "tags"),
        IdField("history", "sequence", 4, 4, "item"),
    ),
    (Segment("item", 1, 300), Segment("tags", 301, 40)),
    ("price",),
)


def inputs(rows: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    item = torch.randint(1, 301, (rows, 1), generator=generator)
    tags = torch.randint(301, 341, (rows, 3), generator=generator)
    history = torch.randint(1, 301, (rows, 4), generator=generator)
    history[0] = 0
    return {"ids": torch.cat([item, tags, history], 1).int(), "numeric": torch.rand(rows, 1, generator=generator)}


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name](LAYOUT, dim=8, std=0.5).eval()  # type: ignore[index]


@pytest.mark.parametrize("name", [n if n == "deepfm" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_exports_with_any_batch_size_within_tolerance(name: str, tmp_path: Path) -> None:
    model, path = model_of(name), tmp_path / "model.onnx"
    assert export_onnx(model, inputs(), path) <= 1e-5
    batch = inputs(17)
    found = serve(path).run(None, {key: value.numpy() for key, value in batch.items()})[0]
    with torch.no_grad():
        assert np.allclose(found.reshape(-1), model(**batch).numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_tables_stay_small_in_the_file(bits: int, tmp_path: Path) -> None:
    layout = Layout((IdField("item", "categorical", 0, 1, "item"),), (Segment("item", 1, 20_000),))
    model = MODELS["fm"](layout, dim=15, std=0.5).eval()
    model.vectors.table = table = QuantizedEmbedding.from_dense(model.vectors.table, bits)  # type: ignore[union-attr, arg-type]
    path = tmp_path / "packed.onnx"
    export_onnx(model, {"ids": torch.randint(0, 20_001, (4, 1)).int()}, path)
    assert path.stat().st_size < table.packed.numel() + 40_000
    assert model.vectors.table is table  # type: ignore[union-attr]


@pytest.mark.parametrize(("bits", "dim"), [(8, 9), (8, 16), (4, 8), (4, 9)])
def test_unpacked_rows_equal_the_table_bit_for_bit(bits: int, dim: int) -> None:
    table = QuantizedEmbedding.from_dense(nn.Embedding(50, dim), bits)
    ids = torch.randint(0, 50, (7, 3))
    assert torch.allclose(PackedRows(table)(ids), table(ids), atol=1e-6)


@pytest.mark.slow
def test_a_graph_outside_the_tolerance_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "TOLERANCE", -1.0)
    with pytest.raises(GateFailed, match="differs from the model by"):
        export_onnx(model_of("lr"), inputs(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, ids: torch.Tensor, numeric: torch.Tensor) -> torch.Tensor:
            return numeric.sum(1) if float(numeric.sum()) > 0 else ids.sum(1)

    with pytest.raises(EnvironmentFault, match="cannot be exported") as caught:
        export_onnx(Odd(), inputs(), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    two = QuantizedEmbedding.from_dense(nn.Embedding(50, 8), 2)
    with pytest.raises(EnvironmentFault, match="use 8 or 4 bits"):
        PackedRows(two)
