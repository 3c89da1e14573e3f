"""Compact tables inside an ONNX graph: the same bytes, read by plain operations that ONNX knows.

packed rows     codes uint8 [rows, bytes] -> Gather -> split into values -> * scale + bias
product codes   codes uint8 [rows, bytes] -> Gather -> split -> Gather of the codebook
hashes          the hash's own integer arithmetic; no map of ids is written
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lessen.stored import hashing
from lessen.stored.tables.block_hashed import BlockHashedEmbedding
from lessen.stored.tables.clustered_embedding import ClusteredEmbedding
from lessen.stored.tables.deep_hash import DeepHashEmbedding
from lessen.stored.tables.hashed_embedding import HashedEmbedding
from lessen.stored.tables.mixed_width import MixedWidthEmbedding
from lessen.stored.tables.partly_exact import Places
from lessen.stored.tables.product_quantized import ProductQuantizedEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.stored.tables.quotient_remainder import QuotientRemainderEmbedding
from lessen.stored.tables.sparse_embedding import SparseEmbedding
from lessen.stored.tables.step_quantized import StepQuantizedEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding


def unpacked(codes: Tensor, bits: int, dim: int) -> Tensor:
    """Return the first `dim` values of packed bytes uint8 [*, bytes], element 0 in the low bits: uint8 [*, dim]."""
    if bits == 8:
        return codes[..., :dim]
    # powers of two by division: ONNX shifts know no common type with the rest of the graph
    parts = [torch.div(codes, 2**shift, rounding_mode="floor") % 2**bits for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).flatten(-2)[..., :dim]


class PackedRows(nn.Module):
    """A row-wise quantised table: `codes` uint8 [rows, bytes], `scale` and `bias` fp32 or fp16 [rows, 1]."""

    codes: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, table: QuantizedEmbedding) -> None:
        super().__init__()
        self.bits, self.dim = table.bits, table.embedding_dim
        tail = 8 if table.bits == 8 else 4
        kind = torch.float32 if table.bits == 8 else torch.float16
        ends = table.packed[:, -tail:].contiguous().view(kind)
        self.register_buffer("codes", table.packed[:, :-tail].contiguous())
        self.register_buffer("scale", ends[:, :1].contiguous())
        self.register_buffer("bias", ends[:, 1:].contiguous())

    def forward(self, ids: Tensor) -> Tensor:
        """Return rows [*, dim] float32."""
        ids = ids.long()  # GatherND takes no int32
        codes = unpacked(self.codes[ids], self.bits, self.dim)
        return codes.float() * self.scale[ids].float() + self.bias[ids].float()


class SteppedRows(nn.Module):
    """A table of codes on one grid a field: step of the field * (code - 2^(bits - 1))."""

    def __init__(self, table: StepQuantizedEmbedding) -> None:
        super().__init__()
        self.source = table

    def forward(self, ids: Tensor) -> Tensor:
        """Return rows [*, dim] float32."""
        table, flat = self.source, ids.reshape(-1).long()
        codes = unpacked(table.codes[flat], table.bits, table.embedding_dim)
        rows = (codes.float() - 2.0 ** (table.bits - 1)) * table._steps_of(flat)
        return rows.reshape(*ids.shape, table.embedding_dim)


class ProductRows(nn.Module):
    """A product-quantised table: codes of each id, then their centroids side by side."""

    def __init__(self, table: ProductQuantizedEmbedding) -> None:
        super().__init__()
        self.source = table

    def forward(self, ids: Tensor) -> Tensor:
        """Return rows [*, dim] float32."""
        table, flat = self.source, ids.reshape(-1).long()
        codes = unpacked(table.codes[flat], table.bits, table.groups).long()
        rows = table.codebook(codes + torch.arange(table.groups) * table.centroids).flatten(1)
        return table._without_padding(ids, rows[:, : table.embedding_dim].reshape(*ids.shape, table.embedding_dim))


class HashedRows(nn.Module):
    """A hashed table; which hashes are in use is settled once, as a graph cannot ask its constants."""

    def __init__(self, table: HashedEmbedding) -> None:
        super().__init__()
        self.source = table
        self.remainders = bool((table.constants[..., 0] == 0).any())
        self.hashes = bool((table.constants[..., 0] != 0).any())

    def forward(self, ids: Tensor) -> Tensor:
        """Return the mean of the rows that each id reads, [*, dim] float32."""
        table = self.source
        own, size, first, constants = table._geometry(ids.long())
        a, b, c, d = constants.unbind(-1)
        x = hashing.residue(own).unsqueeze(-1)
        rows = torch.remainder(own.unsqueeze(-1), size)
        if self.hashes:
            hashed = hashing.into(hashing.mixed(x, a, b), size)
            rows = torch.where(a == 0, rows, hashed) if self.remainders else hashed
        found = table.table(rows + first)
        if table.signed:
            found = found * (1.0 - 2.0 * (hashing.mixed(x, c, d) & 1).float()).unsqueeze(-1)
        return table._without_padding(ids, found.mean(dim=-2))


class ComposedRows(nn.Module):
    """A quotient-remainder table without the check of the ids, which onnxruntime makes itself."""

    starts: Tensor
    shared: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, table: QuotientRemainderEmbedding) -> None:
        super().__init__()
        self.source = table
        quotients, shared = torch.tensor(table.quotients), torch.tensor(table.collisions)
        self.register_buffer("starts", torch.tensor([block.start for block in table.blocks]))
        self.register_buffer("shared", shared)
        self.register_buffer("first", quotients.cumsum(0) - quotients)
        self.register_buffer("second", shared.cumsum(0) - shared)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the composed vectors [*, dim] float32."""
        table, wide = self.source, ids.long()
        block = torch.bucketize(wide, self.starts, right=True) - 1
        own, divisor = wide - self.starts[block], self.shared[block]
        left = table.quotient(torch.div(own, divisor, rounding_mode="floor") + self.first[block])
        right = table.remainder(torch.remainder(own, divisor) + self.second[block])
        return table._without_padding(ids, left * right if table.operation == "multiply" else left + right)


class ClusteredRows(nn.Module):
    """A clustered table: centre plus hashed correction of each chunk."""

    def __init__(self, table: ClusteredEmbedding) -> None:
        super().__init__()
        self.source = table

    def forward(self, ids: Tensor) -> Tensor:
        """Return rows [*, dim] float32."""
        table, flat = self.source, ids.reshape(-1).long()
        base = torch.arange(table.chunks) * table.clusters
        centres = table.centres(table.codes[flat].long() + base)
        rows = (centres + table.corrections(table.correction_rows(flat) + base)).flatten(1)
        return table._without_padding(ids, rows.reshape(*ids.shape, table.embedding_dim))


class DeepHashRows(DeepHashEmbedding):
    """A deep hash table that runs its network once an id, repeated or not."""

    def __init__(self, table: DeepHashEmbedding) -> None:
        super().__init__(table.shape, list(table.exact_blocks), table.hashes, table.width, table.layers)
        self.load_state_dict(table.state_dict())
        self.eval()

    def computed(self, places: Places) -> Tensor:
        """Return the network's output for each id."""
        code = self.encode(places.block.reshape(-1), places.own.reshape(-1))
        found: Tensor = self.network(code).reshape(*places.own.shape, self.embedding_dim)
        return found


class BlockHashedRows(BlockHashedEmbedding):
    """A block-hashed table that gathers its values one by one; windows over the array would be copies in a graph."""

    def __init__(self, table: BlockHashedEmbedding) -> None:
        super().__init__(table.shape, list(table.exact_blocks), table.size, table.block)
        self.load_state_dict(table.state_dict())

    def computed(self, places: Places) -> Tensor:
        """Return the chunks of each row side by side."""
        starts = self.starts_of(places.compact)
        rows: Tensor = self.memory[starts.unsqueeze(-1) + torch.arange(self.block)].flatten(-2)
        return rows


class MixedWidthRows(nn.Module):
    """A table of several widths: each width is read for all ids, and the one that is theirs is kept."""

    where: Tensor
    starts: Tensor

    def __init__(self, table: MixedWidthEmbedding) -> None:
        super().__init__()
        self.source = table
        self.register_buffer("where", table._where(torch.device("cpu")))
        self.register_buffer("starts", torch.tensor([block.start for block in table.blocks]))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the projected rows [*, dim] float32."""
        table, flat = self.source, ids.reshape(-1).long()
        block = torch.bucketize(flat, self.starts, right=True) - 1
        group, first, place = self.where[block].unbind(1)
        row = first + flat - self.starts[block]
        result = torch.zeros(1, table.embedding_dim)
        for number, width in enumerate(table.distinct):
            mine = (group == number).unsqueeze(1)
            found = table.tables[number](torch.where(mine[:, 0], row, 0))
            if width < table.embedding_dim:
                chosen = table.projections[number][torch.where(mine[:, 0], place, 0)]
                found = torch.bmm(found.unsqueeze(1), chosen).squeeze(1)
            result = torch.where(mine, found, result)
        return table._without_padding(ids, result.reshape(*ids.shape, table.embedding_dim))


class SparseRows(nn.Module):
    """A table of kept values: up to the longest row's count of them is read for each id, and put into their columns."""

    def __init__(self, table: SparseEmbedding) -> None:
        super().__init__()
        self.source = table
        self.longest = int((table.starts[1:] - table.starts[:-1]).max())

    def forward(self, ids: Tensor) -> Tensor:
        """Return rows [*, dim] float32, with their zeros."""
        table, flat = self.source, ids.reshape(-1).long()
        if self.longest == 0:
            return torch.zeros(1, table.embedding_dim).expand(flat.shape[0], -1).reshape(*ids.shape, -1)
        first, end = table.starts[flat].long().unsqueeze(1), table.starts[flat + 1].long().unsqueeze(1)
        place = first + torch.arange(self.longest)
        there = place < end
        place = torch.where(there, place, 0)
        values = torch.where(there, table.values[place], 0.0)
        own = table.columns[place].long().unsqueeze(2) == torch.arange(table.embedding_dim)
        return (values.unsqueeze(2) * own.float()).sum(dim=1).reshape(*ids.shape, table.embedding_dim)


class TieredRows(nn.Module):
    """Two tiers: a bit for each id, eight a byte, and a running count a byte say which hot row is its, if any."""

    marks: Tensor
    before: Tensor
    counts: Tensor

    def __init__(self, table: TieredEmbedding) -> None:
        super().__init__()
        self.hot, self.cold, self.dim = table.hot, table.cold, table.embedding_dim
        hot = table.hot_ids.long()
        marks = torch.zeros(-(-table.num_embeddings // 8), dtype=torch.int64).scatter_add_(0, hot // 8, 2 ** (hot % 8))
        starts = torch.arange(len(marks)) * 8
        self.register_buffer("marks", marks.to(torch.uint8))
        self.register_buffer("before", torch.searchsorted(hot, starts).int())
        # set bits below each bit of each byte: ONNX counts no bits
        bits = (torch.arange(256).unsqueeze(1) // 2 ** torch.arange(8)) % 2
        self.register_buffer("counts", bits.cumsum(1) - bits)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the hot row, or the cold table's row, of each id: [*, dim] float32."""
        flat = ids.reshape(-1).long()
        byte, bit = torch.div(flat, 8, rounding_mode="floor"), flat % 8
        mark = self.marks[byte].long()
        found = torch.div(mark, 2**bit, rounding_mode="floor") % 2 == 1
        place = torch.where(found, self.before[byte].long() + self.counts[mark, bit], 0)
        rows = torch.where(found.unsqueeze(1), self.hot(place), self.cold(flat))
        return rows.reshape(*ids.shape, self.dim)
