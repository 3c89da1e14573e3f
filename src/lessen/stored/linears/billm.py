"""A linear layer of one sign a weight, a second bit for some or all, and a few levels for each row of a block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import bits as packing
from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.linears.decoded import DecodedLinear
from lessen.stored.linears.group_grid import group_count

SPLIT_LEVELS, PLAIN_LEVELS = 7, 5


@stored
class BiLLMLinear(DecodedLinear):
    """BiLLM's form (arXiv 2402.04291). Storage only: bytes are saved on disk; a served model holds it decoded.

    ordinary weight    s a + m                 a, m of its class of magnitude (small, large) with `split`, else of all
    salient column     s a1 + t a2 + m         t: a second sign

    State: `signs` uint8 [out, packed bits of a row], s; `second` uint8, with `split` [out, packed bits of a row]: t of
    salient columns, else the class; without it [out, packed bits of the salient columns], t; `salient` uint8 [packed
    bits of the inputs]; `levels` fp16 [out, blocks of `block` inputs, 7 or 5]: a and m of small, then of large (or of
    all), then a1, a2, m; `bias` float32 [out] or none.
    Bits of a weight, honestly: with `split` 2 + 112 / block, without it 1 + share of salient columns + 80 / block.
    """

    kind = "billm-linear"
    signs: Tensor
    second: Tensor
    salient: Tensor
    levels: Tensor

    def __init__(
        self, in_features: int, out_features: int, block: int, split: bool, salient: int, bias: bool = True
    ) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**24)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        checks.elements("a weight", self.in_features, self.out_features)
        self.block = checks.whole("block", block, 1, self.in_features)
        self.split = bool(checks.one_of("split", split, (True, False)))
        self.salient_columns = checks.whole("salient", salient, 0, self.in_features)
        has_bias = checks.one_of("bias", bias, (True, False))
        out, row = self.out_features, packing.row_bytes(self.in_features, 1)
        second = row if self.split else packing.row_bytes(self.salient_columns, 1)
        shape = (out, group_count(self.in_features, self.block), SPLIT_LEVELS if self.split else PLAIN_LEVELS)
        self.register_buffer("signs", torch.zeros(out, row, dtype=torch.uint8))
        self.register_buffer("second", torch.zeros(out, second, dtype=torch.uint8))
        self.register_buffer("salient", torch.zeros(row, dtype=torch.uint8))
        self.register_buffer("levels", torch.zeros(shape, dtype=torch.float16))
        self.register_buffer("bias", torch.zeros(out) if has_bias else None)

    def config(self) -> dict[str, Any]:
        """Return the sizes, the inputs of a block, whether ordinary weights are split, and how many columns are not."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "block": self.block,
            "split": self.split,
            "salient": self.salient_columns,
            "bias": self.bias is not None,
        }

    @classmethod
    def from_parts(
        cls, layer: nn.Linear, block: int, signs: Tensor, second: Tensor, salient: Tensor, levels: Tensor
    ) -> BiLLMLinear:
        """Pack bool [out, in] signs and second bits, bool [in] salient columns, and levels fp16; see the class."""
        split = levels.shape[-1] == SPLIT_LEVELS
        made = cls(layer.in_features, layer.out_features, block, split, int(salient.sum()), layer.bias is not None)
        made = made.to(layer.weight.device)
        made.signs.copy_(packing.pack(signs, 1))
        made.second.copy_(packing.pack(second if split else second[:, salient], 1))
        made.salient.copy_(packing.pack(salient, 1))
        made.levels.copy_(levels)
        if made.bias is not None:
            made.bias.copy_(layer.bias.detach())
        return made

    def decoded(self, part: slice) -> Tensor:
        """Return the weights of some outputs, float32 [part, in]."""
        salient = packing.unpack(self.salient, 1, self.in_features).bool()
        signs = packing.unpack(self.signs[part], 1, self.in_features).bool()
        if self.split:
            second = packing.unpack(self.second[part], 1, self.in_features).bool()
        else:
            second = torch.zeros_like(signs)
            second[:, salient] = packing.unpack(self.second[part], 1, self.salient_columns).bool()
        blocks = torch.arange(self.in_features, device=signs.device) // self.block
        return decode(signs, second, salient, self.levels[part].float().index_select(1, blocks))

    def check_values(self) -> None:
        """Refuse levels that are not finite and a count of salient columns that is another. Raises ValueError."""
        if not bool(torch.isfinite(self.levels).all()):
            raise ValueError("levels hold NaN or infinity")
        found = int(packing.unpack(self.salient, 1, 8 * len(self.salient)).sum())
        if found != self.salient_columns:
            raise ValueError(f"salient names {found} columns, the configuration says {self.salient_columns}")
        if bool(packing.unpack(self.salient, 1, 8 * len(self.salient))[self.in_features :].any()):
            raise ValueError("salient names columns beyond the inputs")


def layer_bytes(layer: nn.Linear, block: int, split: bool) -> int:
    """Return the bytes that a layer takes in this form without salient columns."""
    with torch.device("meta"):
        empty = BiLLMLinear(layer.in_features, layer.out_features, block, split, 0, layer.bias is not None)
    return sum(tensor.numel() * tensor.element_size() for tensor in empty.buffers())


def decode(signs: Tensor, second: Tensor, salient: Tensor, levels: Tensor) -> Tensor:
    """Return values float32 [out, in].

    Args:
        signs, second: bool [out, in].
        salient: bool [in].
        levels: float32 [out, in, 7 or 5], those of each weight's block.
    """
    sign = signs.float().mul_(2).sub_(1)
    other = second.float().mul_(2).sub_(1)
    strong, fine, mean = levels[..., -3:].unbind(-1)
    if levels.shape[-1] == SPLIT_LEVELS:
        scale = torch.where(second, levels[..., 2], levels[..., 0])
        offset = torch.where(second, levels[..., 3], levels[..., 1])
    else:
        scale, offset = levels[..., 0], levels[..., 1]
    return torch.where(salient, sign * strong + other * fine + mean, sign * scale + offset)
