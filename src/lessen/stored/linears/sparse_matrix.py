"""A matrix with most of its weights gone: the kept values in a row, and where they belong.

any places      a bit for each place                 bits a weight: 1 + density * bits of a value
N of M          N places for each run of M columns, ceil(log2 M) bits each, rising: N/M * (bits of a value + log2 M)

Columns are those of the matrix: a run never crosses a row. Kept values may be zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import bits as packing
from lessen.stored import checks
from lessen.stored.base import StoredModule, stored

VALUES: dict[str, torch.dtype] = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8,
}  # fmt: skip
"""Kinds of kept values; int8 has a scale for each row."""
LONGEST_RUN = 256


@stored
class SparseMatrix(StoredModule):
    """State: `bits` uint8 [rows, ceil(columns / 8)] (low bits first) and `starts` int32 [rows + 1], or `places` uint8
    [rows, packed bytes of N columns / M places]; `values` [kept], row by row; `scales` float32 [rows] for int8 values.

    value(row, column) = values[kept places before it], times scales[row] for int8, if it is kept, else 0.
    """

    kind = "sparse-matrix"
    bits: Tensor | None
    starts: Tensor | None
    places: Tensor | None
    values: Tensor
    scales: Tensor | None

    def __init__(
        self, rows: int, columns: int, kept: int, values: str = "fp32", n: int | None = None, m: int | None = None
    ) -> None:
        super().__init__()
        self.rows = checks.whole("rows", rows, 1, 2**24)
        self.columns = checks.whole("columns", columns, 1, 2**28)
        size = checks.elements("a weight", self.rows, self.columns)
        self.value_kind: str = checks.one_of("values", values, tuple(VALUES))
        self.n, self.m = n, m
        if (n is None) != (m is None):
            raise ValueError(f"a pattern needs both n and m, found {n!r} and {m!r}")
        if m is not None and n is not None:
            self.m = checks.whole("m", m, 2, LONGEST_RUN)
            self.n = checks.whole("n", n, 1, self.m - 1)
            if self.columns % self.m:
                raise ValueError(f"{self.columns} columns are no multiple of m = {self.m}")
            size = self.rows * self.columns // self.m * self.n
        kept = checks.whole("kept", kept, 0, min(size, 2**31 - 1))
        if m is not None and kept != size:
            raise ValueError(f"{self.n}:{self.m} keeps {size} values of this matrix, found {kept}")
        packed = (self.rows, packing.row_bytes(self.columns, 1))
        self.register_buffer("bits", torch.zeros(packed, dtype=torch.uint8) if m is None else None)
        self.register_buffer("starts", torch.zeros(self.rows + 1, dtype=torch.int32) if m is None else None)
        runs = (self.rows, 0 if m is None else packing.row_bytes(self.kept_a_row, self.place_bits))
        self.register_buffer("places", None if m is None else torch.zeros(runs, dtype=torch.uint8))
        self.register_buffer("values", torch.zeros(kept, dtype=VALUES[self.value_kind]))
        self.register_buffer("scales", torch.ones(self.rows) if self.value_kind == "int8" else None)

    @property
    def place_bits(self) -> int:
        """Bits of a place in a run."""
        return ((self.m or 2) - 1).bit_length()

    @property
    def kept_a_row(self) -> int:
        """Values of each row under N of M."""
        return self.columns // (self.m or 1) * (self.n or 0)

    def config(self) -> dict[str, Any]:
        """Return the sizes, the kind of values and the pattern."""
        return {
            "rows": self.rows, "columns": self.columns, "kept": len(self.values), "values": self.value_kind,
            "n": self.n, "m": self.m,
        }  # fmt: skip

    @classmethod
    def of(
        cls, weight: Tensor, mask: Tensor, values: str = "fp32", n: int | None = None, m: int | None = None,
        scales: Tensor | None = None,
    ) -> SparseMatrix:  # fmt: skip
        """Keep the values of a weight float [rows, columns] where `mask`, bool, is set.

        Args:
            n, m: the pattern, of which the mask must have exactly N places in every run; none: any places.
            scales: steps of int8 values, float32 [rows]; none: max|kept| / 127 of each row.

        Raises:
            ValueError: the mask does not have the pattern.
        """
        rows, columns = weight.shape
        made = cls(rows, columns, int(mask.sum()), values, n, m).to(weight.device)
        if n is not None and m is not None:
            runs = mask.view(rows, -1, m)
            if not bool((runs.sum(-1) == n).all()):
                raise ValueError(f"a run of {m} columns does not keep {n}")
            places = runs.nonzero()[:, 2].view(rows, -1).to(torch.uint8)
            made.places.copy_(packing.pack(places, made.place_bits))  # type: ignore[union-attr]
        else:
            made.bits.copy_(packing.pack(mask, 1))  # type: ignore[union-attr]
            made.starts[1:] = mask.sum(1).cumsum(0)  # type: ignore[index]
        kept = weight.detach()[mask]
        if made.scales is not None:
            largest = weight.detach().float().mul(mask).abs().amax(1) / 127.0
            made.scales.copy_(torch.where(largest > 0, largest, 1.0) if scales is None else scales)
            each = made.scales.unsqueeze(1).expand(rows, columns)[mask]
            kept = torch.round(kept.float() / each).clamp_(-127, 127)
        made.values.copy_(kept)
        return made

    def mask(self, part: slice) -> Tensor:
        """Return which places of some rows are kept, bool [part, columns]."""
        if self.bits is not None:
            return packing.unpack(self.bits[part], 1, self.columns).bool()
        assert self.places is not None
        assert self.m is not None
        places = packing.unpack(self.places[part], self.place_bits, self.kept_a_row).long()
        runs = torch.zeros(len(places), self.columns // self.m, self.m, dtype=torch.bool, device=places.device)
        runs.scatter_(2, places.view(len(places), -1, self.n or 0), True)
        return runs.flatten(1)

    def held(self, part: slice) -> Tensor:
        """Return the values of some rows as they are held, codes for int8: [part, columns], 0 where none is kept."""
        mask = self.mask(part)
        first, last = self._span(part)
        dense = torch.zeros(mask.shape, dtype=self.values.dtype, device=mask.device)
        return dense.masked_scatter_(mask, self.values[first:last])

    def decoded(self, part: slice) -> Tensor:
        """Return some rows, float32 [part, columns]."""
        dense = self.held(part).float()
        return dense if self.scales is None else dense * self.scales[part].unsqueeze(1)

    def dequantise(self) -> Tensor:
        """Return the dense matrix [rows, columns], float32."""
        return self.decoded(slice(0, self.rows))

    def check_values(self) -> None:
        """Refuse values that are not finite, places out of order, and bits that mark other than what is kept."""
        if self.values.is_floating_point() and not bool(torch.isfinite(self.values).all()):
            raise ValueError("values hold NaN or infinity")
        if self.scales is not None and not bool((torch.isfinite(self.scales) & (self.scales > 0)).all()):
            raise ValueError("scales must be positive and finite")
        if self.bits is not None and self.starts is not None:
            single = packing.unpack(self.bits, 1, 8 * self.bits.shape[1])
            if bool(single[:, self.columns :].any()):
                raise ValueError("bits mark places beyond the columns")
            counts = torch.cat([single.new_zeros(1, dtype=torch.int64), single.sum(1).cumsum(0)])
            checks.equal("starts", self.starts, counts)
            if int(counts[-1]) != len(self.values):
                raise ValueError(f"bits mark {int(counts[-1])} places, and there are {len(self.values)} values")
        if self.places is not None:
            self._check_places(packing.unpack(self.places, self.place_bits, self.kept_a_row))

    def _check_places(self, places: Tensor) -> None:
        checks.within("places", places, 0, (self.m or 1) - 1)
        runs = places.view(self.rows, -1, self.n or 1).to(torch.int16)
        if bool((runs.diff(dim=2) <= 0).any()):
            raise ValueError("places of a run do not rise")

    def _span(self, part: slice) -> tuple[int, int]:
        if self.starts is not None:
            return int(self.starts[part.start]), int(self.starts[part.stop])
        return part.start * self.kept_a_row, part.stop * self.kept_a_row


def sparse_bytes(rows: int, columns: int, kept: int, values: str, n: int | None, m: int | None) -> int:
    """Return the bytes of a matrix in this form, found without making it."""
    with torch.device("meta"):
        empty = SparseMatrix(rows, columns, kept, values, n, m)
    return sum(tensor.numel() * tensor.element_size() for tensor in empty.buffers())
