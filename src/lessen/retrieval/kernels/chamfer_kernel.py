"""The best product of each query token with every document's tokens, in float32: one pass, nothing kept but maxima.

queries  float32 [blocks, dim, vectors, lanes]   query tokens side by side, one number of each
tokens   float32 [T, dim]                        of all documents, one after the other
out      float32 [n, blocks * vectors * lanes]   max over the tokens p of a document of <q, p>

A tile of tokens meets a block of query tokens at a time: every sum stays in a register until it is compared. A matrix
product for each document would write its products to memory, and small ones leave most of the processor idle.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from lessen.retrieval.kernels.maxsim_kernel import NAMES, keep_larger, lanes, walk, width
from lessen.stored.kernels import machine
from lessen.stored.kernels.assembly import Assembly, floats, multiply_add, same, spread

TILE = {16: 12, 8: 6}
"""Tokens of a tile by lanes: two vectors of query tokens for each, beside those of the query, fill the registers."""


def available() -> bool:
    """Tell whether the kernel can be made here."""
    return machine.available()


def best_products(query: Tensor, tokens: Tensor, starts: Tensor, documents: Tensor) -> Tensor:
    """Return the largest products, float32 [n, Q], for a query, float32 [Q, dim], and documents, int64 [n].

    Args:
        tokens: float32 [T, dim], contiguous; starts: int64 [n + 1], the first token of each document and the end.
    """
    count, dim = query.shape
    padded = torch.nn.functional.pad(query, (0, 0, 0, -count % width()))
    packed = padded.view(-1, width(), dim).transpose(1, 2).contiguous()
    out = torch.empty(len(documents), len(padded))
    state = (ctypes.c_int64 * 3)(1, 0, 0)
    places = [tensor.data_ptr() for tensor in (packed, tokens, starts, documents)]
    values = dict.fromkeys(NAMES, 0) | {
        "state": ctypes.addressof(state), "count": len(documents), "blocks": len(packed), "out": out.data_ptr(),
        **dict(zip(("queries", "tokens", "starts", "documents"), places, strict=True)),
    }  # fmt: skip
    machine.run(_kernel(dim), (ctypes.c_int64 * len(values))(*values.values()), 1)
    return out[:, :count]


@cache
def _kernel(dim: int) -> int:
    return machine.compiled(_text(dim))


def _text(dim: int) -> str:
    return walk(dim, "float", TILE[lanes()], _tile)


def _tile(code: Assembly, dim: int, queries: str, token: str, count: int, best: list[str]) -> None:
    """Compare the products of `count` tokens from `token` on with the best ones."""
    size = lanes()
    kind, nothing = floats(size), same(size, "float", "0.0")
    totals = [[code.variable(kind, nothing) for _ in best] for _ in range(count)]
    for total in (one for row in totals for one in row):
        code.set(kind, nothing, total)
    rows = [code.place("%tokensptr", code.multiply(code.add(token, number), dim), "float") for number in range(count)]
    code.prefetch(code.place("%tokensptr", code.multiply(code.add(token, count), dim), "float"), 4 * count * dim)
    with code.loop("0", str(dim)) as at:
        first = code.place(queries, code.multiply(at, size * len(best)), "float")
        asked = [code.get(kind, code.place(first, str(size * number), "float")) for number in range(len(best))]
        for row, sums in zip(rows, totals, strict=True):
            given = spread(code, code.get("float", code.place(row, at, "float")), size)
            for own, total in zip(asked, sums, strict=True):
                code.set(kind, multiply_add(code, size, own, given, code.get(kind, total)), total)
    for sums in totals:
        for total, one in zip(sums, best, strict=True):
            keep_larger(code, code.get(kind, total), one)
