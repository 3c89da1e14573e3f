"""Deep hash embedding: no rows at all; hashes of an id are fed to a small network.

id of field f --k hashes--> [-1, 1]^k --(linear, batch norm, mish) x layers--> linear --> [d]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import checks, hashing
from lessen.stored.base import stored
from lessen.stored.linears.low_rank import empty_linear
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.partly_exact import PartlyExactEmbedding, Places

BUCKETS = 1_000_000


@stored
class DeepHashEmbedding(PartlyExactEmbedding):
    """State: `constants` int64 [blocks, hashes, 2], the network and `exact` (rows of small fields).

    One network serves all large fields; each field has its own hashes. Ids repeated in a batch are computed once.
    A lookup costs hashes * width + (layers - 1) * width^2 multiply-adds: thousands of times a gather.
    """

    kind = "deep-hash-embedding"
    constants: Tensor

    def __init__(self, shape: TableShape, exact_blocks: list[int], hashes: int, width: int, layers: int) -> None:
        super().__init__(shape, exact_blocks)
        self.hashes = checks.whole("hashes", hashes, 1, 2**16)
        self.width = checks.whole("width", width, 1, 2**16)
        self.layers = checks.whole("layers", layers, 1, 64)
        self.register_buffer("constants", torch.zeros(len(self.blocks), self.hashes, 2, dtype=torch.int64))
        parts: list[nn.Module] = []
        for number in range(self.layers):
            parts.append(empty_linear(self.width if number else self.hashes, self.width))
            parts.extend((nn.BatchNorm1d(self.width), nn.Mish()))
        self.network = nn.Sequential(*parts, empty_linear(self.width, shape.dim))

    def extra_config(self) -> dict[str, Any]:
        """Return the exact blocks and the sizes of encoding and network."""
        return {**super().extra_config(), "hashes": self.hashes, "width": self.width, "layers": self.layers}

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator) -> None:
        """Draw hashes and weights; the last layer is scaled so that vectors of a sample have the deviation `std`."""
        self.constants.copy_(torch.randint(1, hashing.PRIME, self.constants.shape, generator=generator))
        self.reset_exact(std, generator)
        linears = [layer for layer in self.network if isinstance(layer, nn.Linear)]
        for layer in linears:
            gain = (2.0 / layer.in_features) ** 0.5
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * gain)
            layer.bias.zero_()
        block = max(range(len(self.blocks)), key=lambda number: self.blocks[number].rows)
        own = torch.arange(min(512, self.blocks[block].rows))
        code = self.encode(torch.full_like(own, block), own)
        deviation = float(self.network.train()(code).std()) if len(own) > 1 else 1.0
        linears[-1].weight.mul_(std / max(deviation, 1e-12))
        for part in self.network:
            if isinstance(part, nn.BatchNorm1d):
                part.reset_running_stats()

    def check_values(self) -> None:
        """Refuse constants that are no residues of the hash. Raises ValueError."""
        hashing.check("constants", self.constants)

    def encode(self, block: Tensor, own: Tensor) -> Tensor:
        """Return the encoding of flat ids, float32 [n, hashes] in [-1, 1]."""
        a, b = self.constants[block].unbind(-1)
        value = hashing.into(hashing.mixed(hashing.residue(own).unsqueeze(-1), a, b), BUCKETS)
        return value.float() * (2.0 / (BUCKETS - 1)) - 1.0

    def computed(self, places: Places) -> Tensor:
        """Return the network's output for each id, each distinct id once."""
        limit = max(self.num_embeddings, 1)
        distinct, position = torch.unique(places.block * limit + places.own, return_inverse=True)
        code = self.encode(distinct // limit, distinct % limit)
        if len(distinct) == 1 and self.training:
            code = code.expand(2, -1)  # batch norm needs two examples to train on
        found: Tensor = self.network(code)
        return found[position]
