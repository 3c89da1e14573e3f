"""Small tables of every form that compiled lookups read, at any width, for the tests of kernels."""

from __future__ import annotations

import torch
from torch import nn

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

ROWS = 90


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def dense(shape: TableShape) -> nn.Module:
    weight = torch.randn(shape.rows, shape.dim, generator=generator())
    if shape.mode is None:
        return nn.Embedding(shape.rows, shape.dim, shape.padding_idx, _weight=weight)
    return nn.EmbeddingBag(
        shape.rows,
        shape.dim,
        mode=shape.mode,
        padding_idx=shape.padding_idx,
        _weight=weight,
        include_last_offset=shape.include_last_offset,
    )


def quantised(bits):
    return lambda shape: QuantizedEmbedding.from_dense(dense(shape), bits)


def half(dtype):
    return lambda shape: HalfEmbedding.from_dense(dense(shape), dtype)


def product(centroids, width):
    def build(shape):
        made = ProductQuantizedEmbedding(shape, max(1, shape.dim // width), centroids)
        codes = torch.randint(0, centroids, (shape.rows, made.groups), generator=generator())
        book = torch.randn(made.groups, centroids, made.width, generator=generator())
        return ProductQuantizedEmbedding.from_codes(shape, codes, book).requires_grad_(False)

    return build


def pruned(inner):
    def build(shape):
        position = torch.randint(0, 20, (shape.rows,), dtype=torch.int32, generator=generator())
        made = PrunedEmbedding.from_dense(shape, torch.randn(20, shape.dim, generator=generator()), position)
        if inner:
            made.table = inner(TableShape(20, shape.dim))
        return made.requires_grad_(False)

    return build


def random(*shape):
    return torch.randn(*shape, generator=generator())


def stepped(bits):
    def build(shape):
        shape = fields(shape)
        steps = torch.rand(5 if shape.segments else 1, generator=generator()) * 0.1 + 0.01
        return StepQuantizedEmbedding.from_dense(shape, random(shape.rows, shape.dim), steps, bits)

    return build


def fields(shape):
    """The same table with fields of 60, 10 and 15 rows after a row of none; 4 rows are of none at the end."""
    segments = [("a", 1, 60), ("b", 61, 10), ("c", 71, 15)]
    return TableShape(**{**shape.config(), "segments": segments})


def hashed(hashes, signed, buckets, modulo=True):
    def build(shape):
        made = HashedEmbedding(fields(shape) if len(buckets) > 1 else shape, list(buckets), hashes, signed)
        made.reset(1.0, generator(), modulo)
        return made.requires_grad_(False)

    return build


def shared(exact):
    def parts(shape):
        return (fields(shape), [0, 2]) if exact else (shape, [])

    return parts


def unified(exact, chunks):
    def build(shape):
        made = UnifiedEmbedding(*shared(exact)(shape), 17, chunks if shape.dim % chunks == 0 else 1)
        made.reset(1.0, generator())
        return made.requires_grad_(False)

    return build


def robe(exact, block):
    def build(shape):
        size = block if shape.dim % block == 0 else shape.dim
        made = BlockHashedEmbedding(*shared(exact)(shape), 3 * shape.dim + 5, size)
        made.reset(1.0, generator())
        return made.requires_grad_(False)

    return build


def weighted(exact):
    def build(shape):
        rows, slots = ([20, 7, 4], [60, 5, 4]) if exact else ([25], [40])
        made = WeightedHashEmbedding(*shared(exact)(shape), rows, slots, 3)
        made.reset(1.0, generator())
        return made.requires_grad_(False)

    return build


def quotient(collisions, operation):
    def build(shape):
        made = QuotientRemainderEmbedding(fields(shape) if len(collisions) > 1 else shape, list(collisions), operation)
        made.reset(1.0, generator())
        return made.requires_grad_(False)

    return build


def tiered(cold):
    def build(shape):
        made = TieredEmbedding(shape, 11, cold(bare(TableShape(shape.rows, shape.dim))))
        made.fill_hot(torch.arange(2, 90, 8), random(11, shape.dim))
        return made.requires_grad_(False)

    return build


def bitmap(shape):
    return BitmapEmbedding.from_dense(shape, random(shape.rows, shape.dim), random(shape.rows, shape.dim) > 0.3)


def narrow(shape):
    shape, wide = fields(shape), shape.dim
    widths = [wide, max(1, wide // 2), max(1, wide - 1), 1, 1]
    return NarrowRowsEmbedding.from_dense(shape, random(shape.rows, wide), random(shape.rows) > -0.5, widths)


def mixed_bits(shape):
    bits = torch.randint(0, 9, (shape.rows,), generator=generator())
    steps, offset = torch.rand(9, generator=generator()) * 0.1 + 0.01, random(shape.dim)
    return MixedBitsEmbedding.from_dense(shape, random(shape.rows, shape.dim), bits, steps, offset)


def group_columns(shape):
    group = torch.randint(0, 5, (shape.rows,), generator=generator())
    columns = random(5, shape.dim) > -0.2
    columns[0], columns[1] = True, False
    return GroupColumnsEmbedding.from_dense(shape, random(shape.rows, shape.dim), group, columns)


FORMS = {
    "int8": quantised(8), "int4": quantised(4), "int2": quantised(2), "fp16": half("fp16"), "bf16": half("bf16"),
    "product of 256": product(256, 4), "product of 200": product(200, 3), "product of 16": product(16, 2),
    "product of 11": product(11, 4), "pruned": pruned(None), "pruned int4": pruned(quantised(4)),
    "pruned product": pruned(product(256, 4)), "step of 8": stepped(8), "step of 2": stepped(2),
    "hashed": hashed(1, False, (13,)), "two hashes": hashed(2, True, (13,)),
    "hashed fields": hashed(3, True, (1, 11, 10, 7, 4), False), "unified": unified(False, 1),
    "unified fields": unified(True, 4), "robe": robe(False, 8), "robe fields": robe(True, 2),
    "weighted hash": weighted(False), "weighted fields": weighted(True),
    "quotient": quotient((9,), "multiply"), "quotient fields": quotient((1, 8, 1, 4, 2), "add"),
    "tiered": tiered(product(256, 4)), "tiered int4": tiered(quantised(4)), "bitmap": bitmap, "narrow": narrow,
    "mixed bits": mixed_bits, "group columns": group_columns,
}  # fmt: skip
