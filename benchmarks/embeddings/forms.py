"""The stored tables that the lookup and memory benchmarks compare, each with the bytes that its layout must take."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lessen.stored.tables import row_classes, rowwise
from lessen.stored.tables.bitmap_embedding import BitmapEmbedding
from lessen.stored.tables.block_hashed import BlockHashedEmbedding
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.group_columns import GroupColumnsEmbedding
from lessen.stored.tables.half_embedding import HalfEmbedding
from lessen.stored.tables.hashed_embedding import HashedEmbedding
from lessen.stored.tables.mixed_bits import MixedBitsEmbedding
from lessen.stored.tables.narrow_rows import NarrowRowsEmbedding
from lessen.stored.tables.product_quantized import ProductQuantizedEmbedding
from lessen.stored.tables.pruned_embedding import PrunedEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.stored.tables.quotient_remainder import QuotientRemainderEmbedding
from lessen.stored.tables.step_quantized import StepQuantizedEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding, bare
from lessen.stored.tables.unified_embedding import UnifiedEmbedding
from lessen.stored.tables.weighted_hash import WeightedHashEmbedding

REFERENCE = "float32 (A/A)"
KINDS = 16
"""Groups of columns; widths of 0, 2, 4 and 8 bits in turn."""


class Form(NamedTuple):
    """How a table is made, what its layout takes (rows, columns to bytes), and the time against float32 it may take."""

    make: Callable[[TableShape, Tensor, torch.Generator], nn.Module]
    arithmetic: Callable[[int, int], float]
    bar: float | None = None


def plain(shape: TableShape, weight: Tensor, _: torch.Generator) -> nn.Module:
    if shape.mode is None:
        return nn.Embedding.from_pretrained(weight)
    return nn.EmbeddingBag.from_pretrained(weight, mode=shape.mode)


def quantised(bits: int) -> Callable[[TableShape, Tensor, torch.Generator], nn.Module]:
    def make(shape: TableShape, weight: Tensor, _: torch.Generator) -> QuantizedEmbedding:
        made = QuantizedEmbedding(shape, bits)
        for start in range(0, shape.rows, 1_000_000):
            made.packed[start : start + 1_000_000] = rowwise.pack(weight[start : start + 1_000_000], bits)
        return made

    return make


def half(shape: TableShape, weight: Tensor, _: torch.Generator) -> HalfEmbedding:
    made = HalfEmbedding(shape, "fp16")
    made.rows.copy_(weight)
    return made


def step(shape: TableShape, _: Tensor, g: torch.Generator) -> StepQuantizedEmbedding:
    made = StepQuantizedEmbedding(shape, 2)
    made.codes.copy_(random_bytes(made.codes.shape, g))
    made.steps.fill_(0.1)
    return made


def pruned(shape: TableShape, weight: Tensor, g: torch.Generator) -> PrunedEmbedding:
    kept = shape.rows // 4
    position = torch.randint(0, kept, (shape.rows,), dtype=torch.int32, generator=g)
    made = PrunedEmbedding.from_dense(shape, weight[:1], position)
    made.kept = kept
    made.table = quantised(4)(TableShape(kept, shape.dim), weight[:kept], g)
    return made


def product(centroids: int) -> Callable[[TableShape, Tensor, torch.Generator], ProductQuantizedEmbedding]:
    def make(shape: TableShape, _: Tensor, g: torch.Generator) -> ProductQuantizedEmbedding:
        made = ProductQuantizedEmbedding(shape, shape.dim // 4, centroids).requires_grad_(False)
        made.codes.copy_(random_bytes(made.codes.shape, g))
        made.codebook.weight.copy_(torch.randn(made.codebook.weight.shape, generator=g))
        return made

    return make


def tiered(shape: TableShape, weight: Tensor, g: torch.Generator) -> TieredEmbedding:
    hot = shape.rows // 20
    made = TieredEmbedding(shape, hot, product(256)(bare(shape), weight, g))
    made.fill_hot(torch.randperm(shape.rows, generator=g)[:hot].sort().values, weight[:hot])
    return made


def hashed(hashes: int) -> Callable[[TableShape, Tensor, torch.Generator], nn.Module]:
    def make(shape: TableShape, _: Tensor, g: torch.Generator) -> HashedEmbedding:
        made = HashedEmbedding(shape, [shape.rows // 10], hashes, False)
        made.reset(0.1, g)
        return made

    return make


def unified(shape: TableShape, _: Tensor, g: torch.Generator) -> UnifiedEmbedding:
    made = UnifiedEmbedding(shape, [], shape.rows // 10, 1)
    made.reset(0.1, g)
    return made


def robe(shape: TableShape, _: Tensor, g: torch.Generator) -> BlockHashedEmbedding:
    made = BlockHashedEmbedding(shape, [], shape.rows * shape.dim // 10, shape.dim)
    made.reset(0.1, g)
    return made


def weighted(shape: TableShape, _: Tensor, g: torch.Generator) -> WeightedHashEmbedding:
    made = WeightedHashEmbedding(shape, [], [shape.rows // 10], [shape.rows // 10], 2)
    made.reset(0.1, g)
    return made


def quotient(shape: TableShape, _: Tensor, g: torch.Generator) -> QuotientRemainderEmbedding:
    made = QuotientRemainderEmbedding(shape, [int(shape.rows**0.5)], "multiply")
    made.reset(0.1, g)
    return made


def bitmap(shape: TableShape, weight: Tensor, g: torch.Generator) -> BitmapEmbedding:
    mask = torch.randint(0, 10, weight.shape, dtype=torch.uint8, generator=g) == 0
    return BitmapEmbedding.from_dense(shape, weight, mask)


def narrow(shape: TableShape, weight: Tensor, g: torch.Generator) -> NarrowRowsEmbedding:
    return NarrowRowsEmbedding.from_dense(shape, weight, torch.rand(shape.rows, generator=g) < 0.25, [shape.dim // 2])


def mixed_bits(shape: TableShape, _: Tensor, g: torch.Generator) -> MixedBitsEmbedding:
    bits = torch.tensor([0, 2, 4, 8])[torch.randint(0, 4, (shape.rows,), generator=g)]
    sizes = torch.tensor([-(-shape.dim * width // 8) for width in range(9)])
    made = MixedBitsEmbedding(shape, int(sizes[bits].sum()))
    classes, starts = row_classes.pack(bits, sizes)
    made.classes.copy_(classes)
    made.starts.copy_(starts)
    made.packed.copy_(random_bytes(made.packed.shape, g))
    made.steps.fill_(0.01)
    return made


def group_columns(shape: TableShape, _: Tensor, g: torch.Generator) -> GroupColumnsEmbedding:
    columns = torch.rand(KINDS, shape.dim, generator=g).argsort(dim=1) < shape.dim // 4
    group = torch.randint(0, KINDS, (shape.rows,), generator=g)
    classes, starts = row_classes.pack(group, columns.sum(dim=1))
    made = GroupColumnsEmbedding(shape, KINDS, shape.rows * (shape.dim // 4))
    for buffer, value in ((made.classes, classes), (made.starts, starts), (made.columns, columns)):
        buffer.copy_(value)
    made.values.copy_(torch.randn(made.values.shape, generator=g))
    return made


def random_bytes(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def codebook(dim: int, centroids: int) -> int:
    return dim * centroids * 4


FORMS = {
    REFERENCE: Form(plain, lambda n, d: 4 * n * d),
    "fp16": Form(half, lambda n, d: 2 * n * d),
    "int8": Form(quantised(8), lambda n, d: n * (d + 8), 1.0),
    "int4": Form(quantised(4), lambda n, d: n * (d / 2 + 4), 1.0),
    "int2": Form(quantised(2), lambda n, d: n * (d / 4 + 4)),
    "2 bit, one step": Form(step, lambda n, d: n * d / 4),
    "pruned to 25 % + int4": Form(pruned, lambda n, d: 4 * n + n / 4 * (d / 2 + 4), 1.0),
    "product-quantised": Form(product(256), lambda n, d: n * d / 4 + codebook(d, 256), 2.0),
    "product-quantised, 4 bit": Form(product(16), lambda n, d: n * d / 8 + codebook(d, 16), 2.0),
    "5 % hot + product-quantised": Form(
        tiered, lambda n, d: n / 20 * (4 * d + 4) + n * 12 / 64 + n * d / 4 + codebook(d, 256)
    ),
    "hashed 10 %": Form(hashed(1), lambda n, d: n / 10 * 4 * d, 2.0),
    "double hash 10 %": Form(hashed(2), lambda n, d: n / 10 * 4 * d, 2.0),
    "unified 10 %": Form(unified, lambda n, d: n / 10 * 4 * d, 2.0),
    "ROBE 10 %": Form(robe, lambda n, d: n / 10 * 4 * d, 2.0),
    "weighted hash 10 %": Form(weighted, lambda n, d: n / 10 * 4 * (d + 2), 2.0),
    "quotient-remainder": Form(quotient, lambda n, d: 2 * n**0.5 * 4 * d),
    "bitmap, 10 % of values": Form(bitmap, lambda n, d: n * d * (0.1 * 4 + 12 / 64)),
    "25 % of rows, half the columns": Form(narrow, lambda n, d: n * (0.25 * d / 2 * 4 + 12 / 64)),
    "0, 2, 4 or 8 bits a row": Form(mixed_bits, lambda n, d: n * (3.5 * d / 8 + 1)),
    "16 groups, 25 % of columns each": Form(group_columns, lambda n, d: n * (d // 4 * 4 + 1)),
}
"""Hashes take at most twice the time of float32, whatever their number: the bar for hashed tables."""
