"""Every click model, plain and with each kind of compact table, gives torch's logits under onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lessen.data.columns import IdField, Layout
from lessen.errors import ConfigError, EnvironmentFault, GateFailed, LessenError
from lessen.export import onnx as exporter
from lessen.export.onnx import export_onnx, serve
from lessen.export.onnx_tables import PackedRows
from lessen.stored.fields import Segment
from lessen.stored.linears.int8_linear import Int8Linear
from lessen.stored.linears.low_rank import LowRankLinear
from lessen.stored.tables.bitmap_embedding import BitmapEmbedding
from lessen.stored.tables.block_hashed import BlockHashedEmbedding
from lessen.stored.tables.clustered_embedding import ClusteredEmbedding
from lessen.stored.tables.deep_hash import DeepHashEmbedding
from lessen.stored.tables.embedding import StoredEmbedding, TableShape
from lessen.stored.tables.fallback_embedding import FallbackEmbedding
from lessen.stored.tables.half_embedding import HalfEmbedding
from lessen.stored.tables.hashed_embedding import HashedEmbedding
from lessen.stored.tables.low_rank import LowRankEmbedding
from lessen.stored.tables.mixed_width import MixedWidthEmbedding
from lessen.stored.tables.product_quantized import ProductQuantizedEmbedding
from lessen.stored.tables.pruned_embedding import PrunedEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.stored.tables.quotient_remainder import QuotientRemainderEmbedding
from lessen.stored.tables.sparse_embedding import SparseEmbedding
from lessen.stored.tables.step_quantized import StepQuantizedEmbedding
from lessen.stored.tables.tensor_train import TensorTrainEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding
from lessen.stored.tables.unified_embedding import UnifiedEmbedding
from lessen.tasks.ctr.models import MODELS

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


def check_export(model: nn.Module, path: Path) -> None:
    assert export_onnx(model, inputs(), path) <= 1e-5
    batch = inputs(17)
    with torch.no_grad():
        assert np.allclose(serve(path)(batch).reshape(-1), model(**batch).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", [n if n == "deepfm" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
@pytest.mark.parametrize("rows", ["plain", "int8"])
def test_exports_with_any_batch_size_within_tolerance(name: str, rows: str, tmp_path: Path) -> None:
    model = model_of(name)
    if rows == "int8":
        model.vectors.table = QuantizedEmbedding.from_dense(model.vectors.table, 8)  # type: ignore[union-attr, arg-type]
    check_export(model, tmp_path / "model.onnx")


def compact(kind: str, table: nn.Embedding) -> StoredEmbedding:
    """Return a table of this kind over 341 rows of width 8: blocks padding, item and tags."""
    generator, shape, weight = torch.Generator().manual_seed(0), TableShape.of(table), table.weight.detach()
    made: StoredEmbedding
    if kind == "low-rank":
        made = LowRankEmbedding(shape, 3)
    elif kind == "fallback":
        made = FallbackEmbedding(shape)
    elif kind == "mixed-width":
        made = MixedWidthEmbedding(shape, [2, 3, 8])
    elif kind == "tiered":
        tiers = TieredEmbedding(shape, 30, QuantizedEmbedding.from_dense(table, 4))
        tiers.fill_hot(torch.arange(2, 302, 10), torch.randn(30, 8))
        return tiers.eval()
    else:
        given: dict[str, StoredEmbedding] = {
            "int2": QuantizedEmbedding.from_dense(table, 2),
            "int4": QuantizedEmbedding.from_dense(table, 4),
            "fp16": HalfEmbedding.from_dense(table, "fp16"),
            "bf16": HalfEmbedding.from_dense(table, "bf16"),
            "steps": StepQuantizedEmbedding.from_dense(shape, weight, torch.tensor([0.1, 0.2, 0.3]), 4),
            "pq": ProductQuantizedEmbedding.from_codes(
                shape, torch.randint(0, 16, (shape.rows, 4), generator=generator), torch.randn(4, 16, 2)
            ),
            "pruned": PrunedEmbedding.from_dense(shape, weight[:50], torch.arange(shape.rows).int() % 50),
            "hash": HashedEmbedding(shape, [1, 30, 40], 1, False),
            "signed-hashes": HashedEmbedding(shape, [1, 30, 20], 2, True),
            "qr": QuotientRemainderEmbedding(shape, [1, 7, 5], "multiply"),
            "unified": UnifiedEmbedding(shape, [0], 60, 2),
            "robe": BlockHashedEmbedding(shape, [0], 200, 4),
            "dhe": DeepHashEmbedding(shape, [0], 16, 16, 1),
            "clusters": ClusteredEmbedding(shape, 2, 16),
            "tensor-train": TensorTrainEmbedding(shape, [0], 2),
            "sparse": SparseEmbedding.from_dense(shape, weight * (weight.abs() > 0.4)),
            "bitmap": BitmapEmbedding.from_dense(shape, weight, weight.abs() > 0.4),
        }
        made = given[kind]
        if hasattr(made, "reset"):
            made.reset(0.5, generator)
        return made.eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.eval()


KINDS = [
    "int2", "int4", "fp16", "bf16", "steps", "pq", "pruned", "hash", "signed-hashes", "qr", "unified", "robe", "dhe",
    "clusters", "low-rank", "fallback", "mixed-width", "tensor-train", "sparse", "tiered",
]  # fmt: skip


@pytest.mark.parametrize(
    "kind", [k if k in ("int4", "hash") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_compact_tables_export_within_tolerance(kind: str, tmp_path: Path) -> None:
    model = model_of("dnn")
    model.vectors.table = compact(kind, model.vectors.table)  # type: ignore[union-attr, arg-type]
    check_export(model, tmp_path / "model.onnx")


@pytest.mark.slow
def test_compact_linear_layers_and_a_table_inside_a_table_export(tmp_path: Path) -> None:
    model = model_of("deepfm")
    pruned = PrunedEmbedding.from_dense(
        TableShape.of(model.vectors.table),  # type: ignore[union-attr, arg-type]
        model.vectors.table.weight.detach()[:50],  # type: ignore[union-attr, index, operator]
        torch.arange(341).int() % 50,
    )
    pruned.table = QuantizedEmbedding.from_dense(pruned.table, 8)
    model.vectors.table = pruned  # type: ignore[union-attr]
    model.deep[0] = Int8Linear.from_dense(model.deep[0])  # type: ignore[index, operator, arg-type]
    second = next(n for n, layer in enumerate(model.deep) if n and isinstance(layer, nn.Linear))  # type: ignore[arg-type]
    model.deep[second] = thin = LowRankLinear(128, 64, 8)  # type: ignore[operator]
    for parameter in thin.parameters():
        nn.init.normal_(parameter, std=0.1)
    check_export(model, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantised_tables_stay_small_in_the_file(bits: int, tmp_path: Path) -> None:
    layout = Layout((IdField("item", "categorical", 0, 1, "item"),), (Segment("item", 1, 20_000),))
    model = MODELS["fm"](layout, dim=15, std=0.5).eval()
    model.vectors.table = table = QuantizedEmbedding.from_dense(model.vectors.table, bits)  # type: ignore[union-attr, arg-type]
    path = tmp_path / "packed.onnx"
    export_onnx(model, {"ids": torch.randint(0, 20_001, (4, 1)).int()}, path)
    assert path.stat().st_size < table.packed.numel() + 50_000
    assert model.vectors.table is table  # type: ignore[union-attr]


@pytest.mark.parametrize(("bits", "dim"), [(8, 9), (8, 16), (4, 8), (4, 9), (2, 8), (2, 9)])
def test_unpacked_rows_equal_the_table_bit_for_bit(bits: int, dim: int) -> None:
    table = QuantizedEmbedding.from_dense(nn.Embedding(50, dim), bits)
    ids = torch.randint(0, 50, (7, 3))
    assert torch.allclose(PackedRows(table)(ids), table(ids), atol=1e-6)


@pytest.mark.slow
def test_a_graph_outside_the_tolerance_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = exporter._answer
    monkeypatch.setattr(exporter, "_answer", lambda session, batch: answer(session, batch) + 1e-4)
    with pytest.raises(GateFailed, match="differs by"):
        export_onnx(model_of("lr"), inputs(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_one_row_is_enough_to_export(tmp_path: Path) -> None:
    one = {name: value[:1] for name, value in inputs().items()}
    assert export_onnx(model_of("fm"), one, tmp_path / "model.onnx") <= 1e-5
    assert len(serve(tmp_path / "model.onnx")(inputs(9))) == 9


def test_a_form_that_onnx_lacks_is_refused_by_name(tmp_path: Path) -> None:
    model = model_of("dnn")
    model.vectors.table = compact("bitmap", model.vectors.table)  # type: ignore[union-attr, arg-type]
    with pytest.raises(ConfigError, match=r"vectors.table is a bitmap-embedding, which has no ONNX form; .*quantized"):
        export_onnx(model, inputs(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_batch_wide_activations_are_refused() -> None:
    model = model_of("deepfm")
    model.deep[0] = Int8Linear.from_dense(model.deep[0], "tensor")  # type: ignore[index, operator, arg-type]
    with pytest.raises(ConfigError, match="activations=row"):
        export_onnx(model, inputs(), Path("never.onnx"))


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Odd(nn.Module):
        def forward(self, ids: torch.Tensor, numeric: torch.Tensor) -> torch.Tensor:
            return numeric.sum(1) if float(numeric.sum()) > 0 else ids.sum(1)

    with pytest.raises(EnvironmentFault, match="cannot be exported") as caught:
        export_onnx(Odd(), inputs(), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert not "".join(capfd.readouterr())


def test_int8_layers_with_trained_biases_export(tmp_path: Path) -> None:
    """onnxruntime fused scales and bias wrongly: 4.7 off with a bias, nothing without one."""
    torch.manual_seed(0)
    layer = nn.Linear(54, 64)
    nn.init.normal_(layer.bias, std=3.0)
    model = nn.Sequential(Int8Linear.from_dense(layer), nn.ReLU(), Int8Linear.from_dense(nn.Linear(64, 3)))
    assert export_onnx(model, torch.randn(256, 54), tmp_path / "model.onnx") <= 1e-4


def test_positional_inputs_are_called_as_the_forward_calls_them(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(30, 8), nn.Embedding(20, 8)

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return (self.users(user) * self.items(item)).sum(1)

    class Unnamed(Two):
        def forward(self, *ids: torch.Tensor) -> torch.Tensor:
            return super().forward(*ids)

    both = (torch.arange(12) % 30, torch.arange(12) % 20)
    assert export_onnx(Two(), both, tmp_path / "model.onnx") <= 1e-5
    found = serve(tmp_path / "model.onnx")({"user": both[0], "item": both[1]})
    assert found.shape == (12,)
    with pytest.raises(ConfigError, match="let the task give a dictionary of tensors"):
        export_onnx(Unnamed(), both, tmp_path / "never.onnx")


def test_the_tolerance_is_a_share_of_the_outputs(tmp_path: Path) -> None:
    class Large(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1e4 * super().forward(x)

    torch.manual_seed(0)
    model = Large(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 8))
    export_onnx(model, torch.randn(32, 64), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").is_file()


@pytest.mark.parametrize("bits", [4, 8])
def test_compact_tables_of_a_float16_model_answer_in_float16(bits: int, tmp_path: Path) -> None:
    table = nn.Embedding(50, 8).half()
    model = nn.Sequential(QuantizedEmbedding.from_dense(table, bits), nn.Tanh())
    assert export_onnx(model, torch.arange(40), tmp_path / "model.onnx") <= 4e-3
    assert serve(tmp_path / "model.onnx")(torch.arange(3)).dtype == np.float16


def test_a_dtype_that_the_runtime_lacks_is_one_line(tmp_path):
    model = nn.Sequential(nn.Embedding(50, 8), nn.Tanh()).bfloat16()
    try:
        export_onnx(model, torch.arange(40), tmp_path / "model.onnx")
    except LessenError as error:  # a runtime that learns the dtype may write it
        assert "float32" in str(error)
        assert "\n" not in str(error)
        assert not (tmp_path / "model.onnx").exists()


def test_a_patch_of_the_cache_is_refused_before_anything_is_written(tmp_path):
    pytest.importorskip("transformers")
    from lessen.decoding.kv_stored import KeyValueCodes
    from lessen.testing.sentences import SentenceTask

    task = SentenceTask()
    model = task.reference()
    KeyValueCodes(bits=4).attach(model)
    with pytest.raises(ConfigError, match="key_value_codes is a key-value-codes.*lessen and transformers decode"):
        export_onnx(model, task.inputs(task.example_batch()), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
