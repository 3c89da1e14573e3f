"""How blocks of keys and values in codes lie in memory for compiled attention, made from `kv_codes` and back.

A block of `group` tokens of one key head in one layer is one record:

    keys      [channel][tokens]   codes, tokens of a channel side by side      scales, minimums fp16 [channel]
    values    [token][channels]   codes, channels of a token side by side      scales, minimums fp16 [run][token]

Codes of 4 and 2 bits share bytes with those half, or each quarter, of the row away: byte i of a row of n bytes holds
codes i, i + n, i + 2 n, ... the first in its low bits, so that a vector of bytes gives vectors of neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.decoding.compiled.layout import CHUNK, Codes, Heads
from lessen.decoding.kv_codes import Coded, Form, encode_keys, encode_values, run_of
from lessen.errors import InputError
from lessen.stored.bits import unpack
from lessen.stored.kernels.operands import here


def codes_for(form: Form, heads: Heads) -> Codes:
    """Return the layout of a form's blocks. Raises InputError for one that compiled attention does not read."""
    run = run_of(heads.width, form.group)
    for lanes in (16, 8) if here().lanes == 16 else (8,):
        parts = (form.group * form.bits // 8, heads.width * form.bits // 8, run)
        if CHUNK % form.group == 0 and all(part % lanes == 0 for part in parts):
            return Codes(form.bits, form.group, heads.width, run, lanes)
    raise InputError(
        f"compiled passes read no codes of {form.bits} bits in groups of {form.group} with heads of {heads.width}"
    )


@dataclass(frozen=True)
class Records:
    """Makes records of a layout, and states of records."""

    codes: Codes

    def encoded(self, keys: Tensor, values: Tensor) -> Tensor:
        """Return records uint8 [*, blocks, bytes] of float32 [*, blocks, group, width]. Raises NonFiniteError."""
        codes = self.codes
        given = encode_keys(keys, codes.bits), encode_values(values, codes.bits, codes.run)
        out = torch.zeros(*keys.shape[:-2], codes.bytes, dtype=torch.uint8)
        parts = [
            self._together(self._single(given[0]).transpose(-1, -2)), *self._tables(given[0]),
            self._together(self._single(given[1])), *self._tables(given[1]),
        ]  # fmt: skip
        for start, part in zip(codes.offsets, parts, strict=True):
            flat = part.contiguous().view(torch.uint8).flatten(-2)
            out[..., start : start + flat.shape[-1]] = flat
        return out

    def decoded(self, records: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, float32 [*, blocks, group, width]."""
        codes, found = self.codes, []
        ends = [*codes.offsets[1:], codes.bytes]
        parts = [records[..., start:end].contiguous() for start, end in zip(codes.offsets, ends, strict=True)]
        for side, (rows, tables) in enumerate(
            ((codes.width, (1, codes.width)), (codes.group, (codes.runs, codes.group)))
        ):
            size = codes.group * codes.width * codes.bits // 8
            levels = self._apart(torch.unflatten(parts[3 * side][..., :size], -1, (rows, -1))).float()
            count = 2 * tables[0] * tables[1]
            scales, minimums = (
                torch.unflatten(one[..., :count].contiguous().view(torch.float16), -1, tables).transpose(-1, -2).float()
                for one in parts[3 * side + 1 : 3 * side + 3]
            )
            if side:
                scales, minimums = (one.repeat_interleave(codes.run, -1) for one in (scales, minimums))
            whole = levels * scales + minimums
            found.append(whole if side else whole.transpose(-1, -2))
        return found[0], found[1]

    def _single(self, given: Coded) -> Tensor:
        """Return codes uint8 [*, group, width], one a byte."""
        return given.codes if given.bits == 8 else unpack(given.codes, given.bits, given.width)

    def _tables(self, given: Coded) -> list[Tensor]:
        """Return scales and minimums, fp16 [*, 1, width] of keys or [*, runs, group] of values."""
        return [one.transpose(-1, -2) if given.run else one for one in (given.scales, given.minimums)]

    def _together(self, codes: Tensor) -> Tensor:
        """Return bytes [*, rows, n] of codes [*, rows, n * fields]."""
        fields = 8 // self.codes.bits
        apart = torch.unflatten(codes, -1, (fields, -1))
        shifts = torch.arange(fields, dtype=torch.uint8).mul_(self.codes.bits).view(-1, 1)
        return (apart << shifts).sum(-2, dtype=torch.uint8)

    def _apart(self, packed: Tensor) -> Tensor:
        """Return codes [*, rows, n * fields] of bytes [*, rows, n]."""
        bits = self.codes.bits
        return torch.cat([(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)], -1)
