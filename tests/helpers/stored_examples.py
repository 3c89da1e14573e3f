"""A small module of every stored class: what the tests of loading, of crafted artifacts and of lookups go through.

A new class needs a line here; `test_crafted_artifacts` names the class that has none.
"""

from __future__ import annotations

import torch
from torch import nn

from kernel_forms import FORMS, ROWS, fields, generator, random
from lessen.codecs.stored import JpegCodec
from lessen.decoding.kv_stored import KeyValueCodes, PrefixStates
from lessen.methods.weights._shared.grids import fit_grid
from lessen.retrieval.adapter import QueryAdapter
from lessen.retrieval.document_writer import PathGuide
from lessen.retrieval.spotting import FocusedHead, FoldedHead
from lessen.sparsity.pattern import Pattern
from lessen.stored.base import StoredModule
from lessen.stored.constant import Constant
from lessen.stored.linears.billm import BiLLMLinear
from lessen.stored.linears.clustered import ClusteredConv, ClusteredLinear, ClusteredMatrix
from lessen.stored.linears.coded_scales import CodedScalesLinear, on_coded_scales
from lessen.stored.linears.cosine_head import CosineHead
from lessen.stored.linears.group_grid import GroupGrid
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.stored.linears.half import HalfLinear
from lessen.stored.linears.int8_linear import Int8Linear
from lessen.stored.linears.low_rank import LowRankLinear
from lessen.stored.linears.low_rank_conv import LowRankConv
from lessen.stored.linears.low_rank_delta import LowRankDelta
from lessen.stored.linears.rotated import RotatedInput, RotatedNorm, draw_signs
from lessen.stored.linears.scaled_input import ScaledInput
from lessen.stored.linears.simplex_head import SimplexHead
from lessen.stored.linears.sparse import SparseConv, SparseLinear, to_matrix
from lessen.stored.linears.sparse_matrix import SparseMatrix
from lessen.stored.linears.spqr import Outliers, SpQRLinear, Statistics
from lessen.stored.linears.static_int8 import StaticInt8Conv, StaticInt8Linear, geometry_of
from lessen.stored.pruned_shape import PrunedShape
from lessen.stored.series.wavelet_bank import WaveletBank
from lessen.stored.tables.cluster_assigned import ClusterAssignedEmbedding
from lessen.stored.tables.clustered_embedding import ClusteredEmbedding
from lessen.stored.tables.deep_hash import DeepHashEmbedding
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.fallback_embedding import FallbackEmbedding
from lessen.stored.tables.group_quantized import GroupQuantizedEmbedding
from lessen.stored.tables.low_rank import LowRankEmbedding
from lessen.stored.tables.mixed_width import MixedWidthEmbedding
from lessen.stored.tables.selected_fields import SelectedFields
from lessen.stored.tables.signed_ids import SignedIds
from lessen.stored.tables.sparse_embedding import SparseEmbedding
from lessen.stored.tables.tensor_train import TensorTrainEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding, bare
from lessen.stored.vectors.flat import FlatVectors, Int8Vectors
from lessen.stored.vectors.fused import FusedVectors
from lessen.stored.vectors.product import ProductVectors
from lessen.stored.vectors.refined import RefinedVectors
from lessen.stored.vectors.rotated import RotatedVectors
from lessen.stored.vectors.staged import Reduction, StagedVectors
from lessen.stored.vectors.token_sets import TokenSets
from visual_examples import VISUAL


def cluster_assigned(shape):
    made = ClusterAssignedEmbedding(fields(shape), [0, 2], [50, 3, 2])
    made.centres.weight.data.copy_(random(55, shape.dim))
    ids = torch.arange(made.computed_rows)
    made.assign(ids, torch.cat([torch.arange(60) % 50, torch.arange(15) % 3, torch.arange(4) % 2]))
    made.reset_exact(1.0, generator())
    return made


def clustered(shape):
    made = ClusteredEmbedding(shape, shape.dim // 2 if shape.dim % 2 == 0 else 1, 7)
    made.reset(1.0, generator())
    return made


def deep_hash(shape):
    made = DeepHashEmbedding(fields(shape), [0, 2], 8, 6, 2)
    made.reset(1.0, generator())
    return made


def fallback(shape):
    return FallbackEmbedding.from_rows(fields(shape), random(5, shape.dim))


def group_quantized(shape, factor=1.0):
    weight = random(shape.rows, shape.dim)
    grid = fit_grid(weight, 3, min(5, shape.dim), False, "minmax")
    layer = nn.Linear(shape.dim, shape.rows, bias=False)
    layer = GroupQuantizedLinear.from_codes(layer, grid, grid.codes(weight))
    return GroupQuantizedEmbedding.sharing(shape, layer, factor)


def low_rank(shape):
    made = LowRankEmbedding(fields(shape), 2)
    for tensor in made.parameters():
        tensor.data.copy_(random(*tensor.shape))
    return made


def mixed_width(shape):
    made = MixedWidthEmbedding(fields(shape), [shape.dim, max(1, shape.dim // 2), 1, 1, shape.dim])
    for tensor in made.parameters():
        tensor.data.copy_(random(*tensor.shape))
    return made


def sparse(shape):
    weight = random(shape.rows, shape.dim)
    return SparseEmbedding.from_dense(shape, weight * (weight > 0.5))


def tensor_train(shape):
    made = TensorTrainEmbedding(fields(shape), [0, 2], 2)
    made.reset(1.0, generator())
    return made


def two_stored_tiers(shape):
    shape = TableShape(shape.rows, shape.dim, mode=shape.mode, include_last_offset=shape.include_last_offset)
    hot = FORMS["int8"](TableShape(11, shape.dim))
    made = TieredEmbedding(shape, 11, FORMS["hashed"](bare(shape)), hot)
    made.hot_ids.copy_(torch.arange(2, 90, 8))
    return made


TABLES = {
    **FORMS,
    "cluster assigned": cluster_assigned,
    "clustered": clustered,
    "deep hash": deep_hash,
    "fallback": fallback,
    "group quantized": group_quantized,
    "low rank": low_rank,
    "mixed width": mixed_width,
    "sparse": sparse,
    "tensor train": tensor_train,
    "two stored tiers": two_stored_tiers,
}
"""Builders of tables [ROWS, dim] from a shape."""


def int8_linear():
    return Int8Linear.from_dense(nn.Linear(12, 5))


def int8_linear_by_tensor():
    return Int8Linear.from_dense(nn.Linear(12, 5), "tensor")


def low_rank_linear():
    made = LowRankLinear(12, 5, 3)
    for tensor in made.parameters():
        tensor.data.copy_(random(*tensor.shape))
    return made


def selected_fields():
    made = SelectedFields(6, [(2, False), (2, True)], [["a", 1, 20], ["b", 21, 30], ["c", 51, 9]], 4, numeric=2)
    made.pick.copy_(torch.tensor([0, 2, 4, 5]))
    made.shift.copy_(torch.tensor([0, 3, 5, 5]))
    made.numbers.copy_(torch.tensor([1, 2]))
    made.table.weight.data.copy_(random(60, 4))
    made.values.data.copy_(random(2, 4))
    return made


def wavelet_bank():
    made = WaveletBank.full(3, 20).part(torch.arange(0, 12_000, 97))
    made.scale_by(random(5, 3, 20))
    return made


def group_quantized_linear(bits=3, symmetric=False):
    scales, minimums = random(5, 3).half(), random(5, 3).half()
    grid = GroupGrid(bits, 5, scales, None if symmetric else minimums)
    return GroupQuantizedLinear.from_codes(nn.Linear(12, 5), grid, grid.codes(random(5, 12)))


def symmetric_quantized_linear():
    return group_quantized_linear(4, symmetric=True)


def coded_scales_linear(symmetric=False):
    scales, minimums = random(5, 3).abs(), -random(5, 3).abs()
    grid = on_coded_scales(GroupGrid(3, 5, scales, None if symmetric else minimums), 6)
    return CodedScalesLinear.from_codes(nn.Linear(12, 5), grid, grid.codes(random(5, 12)))


def symmetric_coded_scales_linear():
    return coded_scales_linear(symmetric=True)


def scaled_input():
    return ScaledInput.around(nn.Linear(12, 5), random(12))


def rotated_input():
    return RotatedInput.around(nn.Linear(12, 5), draw_signs(12, generator()))


def rotated_norm():
    made = RotatedNorm(12, 1e-6, True)
    made.gain.copy_(random(12))
    return made


def spqr_linear():
    codes = torch.arange(60, dtype=torch.uint8).view(5, 12) % 8
    grid = GroupGrid(3, 2, random(3, 3).abs().half(), random(3, 3).half())
    stats = [Statistics(torch.arange(15, dtype=torch.uint8).view(3, 5) % 7, grid)] * 2
    outliers = Outliers(torch.tensor([0, 3, 3]), torch.tensor([7, 0, 11]), random(3).half())
    return SpQRLinear.from_codes(nn.Linear(12, 5), codes, 3, 5, *stats, outliers, torch.arange(12).flip(0))


def billm_linear(split=True):
    signs, second, salient = random(5, 12) > 0, random(5, 12) > 1, torch.arange(12) % 5 == 0
    return BiLLMLinear.from_parts(nn.Linear(12, 5), 5, signs, second, salient, random(5, 3, 7 if split else 5).half())


def billm_linear_of_one_bit():
    return billm_linear(split=False)


def static_int8_linear():
    made = StaticInt8Linear(12, 5)
    made.fill(nn.Linear(12, 5), True, -1.0, 3.0)
    return made


def static_int8_conv():
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    made = StaticInt8Conv.like(layer)
    made.fill(layer, True, -1.0, 3.0)
    return made


def sparse_linear(values="fp32"):
    weight = random(5, 12)
    return SparseLinear.around(
        nn.Linear(12, 5), SparseMatrix.of(weight, weight > 0.3, values), "int8" if values == "int8" else "float"
    )


def sparse_linear_of_int8():
    return sparse_linear("int8")


def sparse_linear_n_of_m():
    weight = random(5, 12)
    return SparseLinear.around(
        nn.Linear(12, 5), SparseMatrix.of(weight, Pattern.parse("2:4").mask(weight), "fp16", 2, 4)
    )


def sparse_conv():
    layer = nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=2)
    weight = to_matrix(layer.weight.detach())
    return SparseConv.around(layer, SparseMatrix.of(weight, Pattern.parse("1:4").mask(weight), "int8", 1, 4))


def clustered_linear():
    return ClusteredLinear.around(nn.Linear(12, 5), ClusteredMatrix.of(torch.arange(60).view(5, 12) % 7, random(7)))


def clustered_conv():
    matrix = ClusteredMatrix.of(torch.arange(216).view(6, 36) % 5, random(5), "fp32")
    return ClusteredConv.around(nn.Conv2d(4, 6, 3, padding=1), matrix)


def low_rank_conv():
    made = LowRankConv(geometry_of(nn.Conv2d(4, 6, 3, stride=2, padding=1)), 3)
    for parameter in made.parameters():
        parameter.data.copy_(random(*parameter.shape))
    return made


def half_linear():
    return HalfLinear.from_dense(nn.Linear(12, 5))


def low_rank_delta():
    made = LowRankDelta.around(nn.Linear(12, 5), 3, 2.0, generator())
    made.up.data.copy_(random(5, 3))
    return made


def prefix_states():
    made = PrefixStates(3, 40, [[2, 8, 8], [2, 8, 8]])
    for name, tensor in made.named_buffers():
        tensor.copy_(torch.tensor([3, 5, 7]) if name == "ids" else random(*tensor.shape))
    return made


def flat_vectors():
    return FlatVectors.of(random(9, 12))


def int8_vectors():
    return Int8Vectors.of(random(24, 12))


def rotated_vectors():
    return RotatedVectors.of(random(24, 12), bits=4)


def product_vectors():
    return ProductVectors.of(random(24, 12), groups=3)


def vector_reduction():
    return Reduction.principal(random(24, 12), 5)


def token_sets():
    return TokenSets.of([random(3, 12), random(1, 12), random(5, 12)])


def staged_vectors():
    vectors, reduction = random(24, 12), vector_reduction()
    return StagedVectors.around(RotatedVectors.of(reduction(vectors), bits=1), Int8Vectors.of(vectors), reduction, 3)


def pruned_shape():
    numbers = {"layer.0.attention": {"num_heads": 3}}
    return PrunedShape(numbers, {"": {"hidden_size": 48}}, {"": [0, 2]}, {"macs": 1000}, {"layer": 3})


OTHERS = {
    "group quantised linear": (group_quantized_linear, lambda: (random(3, 12),)),
    "symmetric quantised linear": (symmetric_quantized_linear, lambda: (random(3, 12),)),
    "coded scales": (coded_scales_linear, lambda: (random(3, 12),)),
    "symmetric coded scales": (symmetric_coded_scales_linear, lambda: (random(3, 12),)),
    "rotated input": (rotated_input, lambda: (random(3, 12),)),
    "rotated norm": (rotated_norm, lambda: (random(3, 12),)),
    "static int8 linear": (static_int8_linear, lambda: (random(3, 12),)),
    "static int8 conv": (static_int8_conv, lambda: (random(2, 4, 7, 7),)),
    "scaled input": (scaled_input, lambda: (random(3, 12),)),
    "spqr linear": (spqr_linear, lambda: (random(3, 12),)),
    "billm linear": (billm_linear, lambda: (random(3, 12),)),
    "billm linear of one bit": (billm_linear_of_one_bit, lambda: (random(3, 12),)),
    "sparse linear": (sparse_linear, lambda: (random(3, 12),)),
    "sparse linear of int8": (sparse_linear_of_int8, lambda: (random(3, 12),)),
    "sparse linear N of M": (sparse_linear_n_of_m, lambda: (random(3, 12),)),
    "sparse conv": (sparse_conv, lambda: (random(2, 8, 7, 7),)),
    "clustered linear": (clustered_linear, lambda: (random(3, 12),)),
    "clustered conv": (clustered_conv, lambda: (random(2, 4, 7, 7),)),
    "sparse matrix": (lambda: sparse_linear().matrix, None),
    "sparse matrix N of M": (lambda: sparse_linear_n_of_m().matrix, None),
    "clustered matrix": (lambda: clustered_linear().matrix, None),
    "pruned shape": (pruned_shape, None),
    "low rank conv": (low_rank_conv, lambda: (random(2, 4, 7, 7),)),
    "half linear": (half_linear, lambda: (random(3, 12),)),
    "low rank delta": (low_rank_delta, lambda: (random(3, 12),)),
    "constant": (lambda: Constant.of(random(2, 3)), lambda: (random(3, 12),)),
    "signed ids": (lambda: SignedIds(7), lambda: (torch.tensor([3, -1, -7, 6]),)),
    "flat vectors": (flat_vectors, lambda: (random(3, 12),)),
    "int8 vectors": (int8_vectors, lambda: (random(3, 12),)),
    "rotated vectors": (rotated_vectors, lambda: (random(3, 12),)),
    "product vectors": (product_vectors, lambda: (random(3, 12),)),
    "vector reduction": (vector_reduction, lambda: (random(3, 12),)),
    "query adapter": (lambda: QueryAdapter.fitted(random(24, 12), random(24, 9), 3), lambda: (random(3, 12),)),
    "refined vectors": (lambda: RefinedVectors.around(int8_vectors(), 5, 2, 0.5), lambda: (random(3, 12),)),
    "fused vectors": (
        lambda: FusedVectors.of(random(24, 12), split=5, left=3, right=4, alpha=0.4),
        lambda: (random(3, 12),),
    ),
    "cosine head": (lambda: CosineHead(12, 4, 3), lambda: (random(3, 12),)),
    "folded head": (lambda: FoldedHead.of(FocusedHead(12, 2, 3, heads=3).eval()), lambda: (random(2, 12, 2, 3),)),
    "path guide": (lambda: PathGuide.of([[5, 2], [6, 7, 2], [6, 8, 2]], 2, 3), None),
    "simplex head": (lambda: SimplexHead(12, 5, 9), lambda: (random(3, 12),)),
    "token sets": (token_sets, None),
    "staged vectors": (staged_vectors, lambda: (random(3, 12),)),
    "jpeg codec": (JpegCodec, None),
    "key-value codes": (KeyValueCodes, None),
    "prefix states": (prefix_states, None),
    "int8 linear": (int8_linear, lambda: (random(3, 12),)),
    "int8 linear by tensor": (int8_linear_by_tensor, lambda: (random(3, 12),)),
    "low rank linear": (low_rank_linear, lambda: (random(3, 12),)),
    "selected fields": (selected_fields, lambda: (torch.arange(18).view(3, 6) % 9, random(3, 4))),
    "wavelet bank": (wavelet_bank, lambda: (random(2, 3, 20),)),
    **VISUAL,
    "scaled few-bit table": (
        lambda: group_quantized(TableShape(9, 12), 3.5),
        lambda: (torch.tensor([[3, 0], [8, 3]]),),
    ),
}
"""Builders of what is no table, and the inputs of a forward (None: no forward of its own)."""


def examples() -> dict[str, StoredModule]:
    """Return one module of every name above, tables [ROWS, 8]."""
    tables = {name: build(TableShape(ROWS, 8)) for name, build in TABLES.items()}
    return {**tables, **{name: build() for name, (build, _) in OTHERS.items()}}
