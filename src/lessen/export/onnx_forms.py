"""What stored modules become inside an ONNX graph: each is replaced by its form of `onnx_tables` or `onnx_linears`.

A kind that is not named here and does not trace by itself is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError
from lessen.export.codes import is_note
from lessen.export.onnx_bags import Bags, SingleRows
from lessen.export.onnx_few_bits import FewBitProduct, FewBitRows
from lessen.export.onnx_linears import Int8Rows
from lessen.export.onnx_sparse import Chosen, Spread, SpreadConv, SpreadLinear
from lessen.export.onnx_static_int8 import StaticConvolution, StaticLinearRows
from lessen.export.onnx_tables import (
    BlockHashedRows,
    ClusteredRows,
    ComposedRows,
    DeepHashRows,
    HashedRows,
    MixedWidthRows,
    PackedRows,
    ProductRows,
    SparseRows,
    SteppedRows,
    TieredRows,
)
from lessen.stored.base import StoredModule
from lessen.stored.linears.clustered import ClusteredConv, ClusteredLinear, ClusteredMatrix
from lessen.stored.linears.coded_scales import CodedScalesLinear
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.stored.linears.int8_linear import Int8Linear
from lessen.stored.linears.sparse import SparseConv, SparseLinear
from lessen.stored.linears.sparse_matrix import SparseMatrix
from lessen.stored.linears.static_int8 import StaticInt8Conv, StaticInt8Linear
from lessen.stored.tables.block_hashed import BlockHashedEmbedding
from lessen.stored.tables.clustered_embedding import ClusteredEmbedding
from lessen.stored.tables.deep_hash import DeepHashEmbedding
from lessen.stored.tables.embedding import StoredEmbedding
from lessen.stored.tables.group_quantized import GroupQuantizedEmbedding, ScaledGroupQuantizedEmbedding
from lessen.stored.tables.hashed_embedding import HashedEmbedding
from lessen.stored.tables.mixed_width import MixedWidthEmbedding
from lessen.stored.tables.product_quantized import ProductQuantizedEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.stored.tables.quotient_remainder import QuotientRemainderEmbedding
from lessen.stored.tables.sparse_embedding import SparseEmbedding
from lessen.stored.tables.step_quantized import StepQuantizedEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding

TRACED = (
    "fallback-embedding", "half-embedding", "low-rank-conv", "low-rank-embedding",
    "low-rank-linear",
    "pruned-embedding", "rotated-input", "rotated-norm", "scaled-input", "selected-fields", "tensor-train-embedding",
    "token-reduction", "unified-embedding",
)  # fmt: skip
"""Kinds whose own forward is made of operations that ONNX knows."""
ROUNDED_AGAIN = (StaticInt8Linear, StaticInt8Conv)
"""Kinds that onnxruntime fuses into integer kernels, which round once more than the graph says: a level here and there
differs. What is checked is the graph as it is written."""


def exportable(model: nn.Module) -> nn.Module:
    """Put its ONNX form in the place of each stored module, in place, and return the model.

    Raises:
        ConfigError: a stored module has no ONNX form; the message names it and those that have one.
    """
    for path, parent in reversed(list(model.named_modules())):  # inner tables before the tables that hold them
        for name, child in list(parent.named_children()):
            form = FORMS.get(getattr(child, "kind", ""))
            if form is None and isinstance(child, StoredModule) and not is_note(child):
                _check_traceable(child, f"{path}.{name}".lstrip("."))
            if form is not None:
                setattr(parent, name, _answering(form(child), child))
            elif isinstance(child, nn.EmbeddingBag) or (isinstance(child, StoredEmbedding) and child.mode is not None):
                setattr(parent, name, _answering(SingleRows(child), child))
    return model


def _answering(form: nn.Module, module: nn.Module) -> nn.Module:
    """Return the form of a table as the table answers: pooled where it pools, and in its own type."""
    if isinstance(module, nn.EmbeddingBag):
        return Bags(form, module)
    if not isinstance(module, StoredEmbedding):
        return form
    if module.mode is not None:
        form = Bags(form, module)
    return form if module.shape.dtype == torch.float32 else Typed(form, module.shape.dtype)


def _check_traceable(module: StoredModule, path: str) -> None:
    if module.kind not in TRACED:
        known = ", ".join(sorted([*FORMS, *TRACED]))
        raise ConfigError(f"{path} is a {module.kind}, which has no ONNX form; these have one: {known}")


class Typed(nn.Module):
    """A compact table in its ONNX form that answers in the type of the table it replaced."""

    def __init__(self, form: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.form, self.dtype = form, dtype

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        """Return rows [*, dim] or bags [bags, dim] of the type."""
        rows: Tensor = self.form(*given, **named)
        return rows.to(self.dtype)


FORMS: dict[str, Callable[[Any], nn.Module]] = {
    QuantizedEmbedding.kind: PackedRows,
    StepQuantizedEmbedding.kind: SteppedRows,
    ProductQuantizedEmbedding.kind: ProductRows,
    HashedEmbedding.kind: HashedRows,
    QuotientRemainderEmbedding.kind: ComposedRows,
    ClusteredEmbedding.kind: ClusteredRows,
    DeepHashEmbedding.kind: DeepHashRows,
    BlockHashedEmbedding.kind: BlockHashedRows,
    MixedWidthEmbedding.kind: MixedWidthRows,
    SparseEmbedding.kind: SparseRows,
    TieredEmbedding.kind: TieredRows,
    Int8Linear.kind: Int8Rows,
    GroupQuantizedLinear.kind: FewBitProduct,
    CodedScalesLinear.kind: FewBitProduct,
    GroupQuantizedEmbedding.kind: FewBitRows,
    ScaledGroupQuantizedEmbedding.kind: FewBitRows,
    SparseMatrix.kind: Spread,
    ClusteredMatrix.kind: Chosen,
    ClusteredLinear.kind: SpreadLinear,
    ClusteredConv.kind: SpreadConv,
    SparseLinear.kind: SpreadLinear,
    SparseConv.kind: SpreadConv,
    StaticInt8Linear.kind: StaticLinearRows,
    StaticInt8Conv.kind: StaticConvolution,
}
