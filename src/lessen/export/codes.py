"""What a layer's weight is, in the terms that every container of packed weights shares: codes, scales, zero points.

ours          value = scale * code + minimum            or scale * (code - 2^(bits - 1))
GGUF          the same two, scale and minimum in fp16   Q4_1, Q5_1;  Q4_0, Q5_0, Q8_0
others        value = scale * (code - zero point)       with a whole zero point: MatMulNBits, compressed-tensors
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError
from lessen.stored import bits as packing
from lessen.stored.base import StoredModule, StoredPatch
from lessen.stored.linears.group_grid import GroupGrid
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.stored.tables.group_quantized import GroupQuantizedEmbedding


@dataclass(frozen=True)
class Coded:
    """A weight [out, in] on a grid: codes uint8 [out, in], and scales of groups of inputs."""

    codes: Tensor
    grid: GroupGrid

    @property
    def inputs(self) -> int:
        """Length of a row."""
        return int(self.codes.shape[1])

    @property
    def label(self) -> str:
        """Say what it is, for messages."""
        kind = "symmetric" if self.grid.minimums is None else "with minimums"
        return f"{self.grid.bits} bit codes {kind} in groups of {self.grid.group}"

    def rows(self, order: Tensor) -> Coded:
        """Return the same weight with its outputs in another order, int64 [out]."""
        grid = self.grid
        minimums = None if grid.minimums is None else grid.minimums[order]
        return Coded(self.codes[order], GroupGrid(grid.bits, grid.group, grid.scales[order], minimums, grid.scale_bits))

    def values(self) -> Tensor:
        """Return the weight, float32 [out, in]."""
        return self.grid.values(self.codes)

    @cached_property
    def zeros(self) -> Tensor | None:
        """Zero points int32 [out, groups] that give every value exactly, or None where there are none."""
        bits, scales, minimums = self.grid.bits, self.grid.scales.float(), self.grid.minimums
        if minimums is None:
            return torch.full_like(scales, 2 ** (bits - 1), dtype=torch.int32)
        low = minimums.float()
        zeros = torch.where(scales == 0, 0.0, -low / scales).round().clamp(0, 2**bits - 1)
        exact = bool((zeros * scales == -low).all())
        return zeros.to(torch.int32) if exact else None

    @property
    def remedy(self) -> str:
        """Say what to compress with where zero points must be whole; the digits of coded scales cannot be chosen."""
        return "symmetric=true" if self.grid.scale_bits is not None else "zeros=whole or symmetric=true"

    def spread(self, values: Tensor, width: int) -> Tensor:
        """Return values of groups [out, groups] for blocks of `width` inputs: [out, blocks].

        A width divides the groups, unless one group is the whole row.
        """
        blocks = -(-self.inputs // width)
        return values.repeat_interleave(-(-self.grid.group // width), 1)[:, :blocks]


def coded(module: Any) -> Coded | None:
    """Return the codes of a layer that holds some, else None."""
    if isinstance(module, GroupQuantizedLinear):
        return Coded(packing.unpack(module.codes, module.bits, module.in_features), module.grid)
    if isinstance(module, GroupQuantizedEmbedding):
        grid = GroupGrid(module.bits, module.group, module.scales, module.minimums)
        return Coded(packing.unpack(module.codes, module.bits, module.embedding_dim), grid)
    return None


def shared(model: Any) -> bool:
    """Tell whether the head of a model reads the table of its tokens: one tensor, or the same codes."""
    head, table = model.get_output_embeddings(), token_table(model)
    if head is None:
        return bool(getattr(model.config, "tie_word_embeddings", False))
    own, other = held(head), held(table)
    return own is not None and own is other


def token_table(model: Any) -> Any:
    """Return the table that a model reads tokens from, or None for one that has none, or several (CLIP)."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def held(module: Any) -> Tensor | None:
    """Return the tensor that a layer or a table keeps its weight in; two that keep one are tied."""
    names = ("codes", "rows", "weight") if isinstance(module, StoredModule) else ("weight",)
    return next((found for name in names if isinstance(found := getattr(module, name, None), Tensor)), None)


def is_note(module: nn.Module) -> bool:
    """Tell whether a module only notes what others say of themselves, so that a container leaves it out."""
    return isinstance(module, StoredPatch) and module.only_notes


def check_plain(model: nn.Module, container: str) -> None:
    """Refuse a model with a patch: a container of weights does not say how a model runs. Raises ConfigError."""
    for path, module in model.named_modules():
        if isinstance(module, StoredPatch) and not is_note(module):
            why = module.not_exported or f"{container} holds weights only"
            raise ConfigError(
                f"{path} is a {module.kind}, which changes how the model runs; {why}: export the artifact of the other "
                "steps"
            )


def check_traced(model: nn.Module, container: str) -> None:
    """Refuse a model with a patch that a trace of its forward does not show. Raises ConfigError."""
    if any(isinstance(module, StoredPatch) and module.not_exported for module in model.modules()):
        check_plain(model, container)


def dense_weight(module: StoredModule, path: str, container: str) -> Tensor:
    """Return the dense weight of a stored layer, float32. Raises ConfigError for a form that has none."""
    try:
        return module.dequantise()
    except NotImplementedError:
        raise ConfigError(f"{path} is a {module.kind}, which has no dense weight that {container} could hold") from None
