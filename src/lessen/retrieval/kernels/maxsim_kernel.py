"""The best product of each query token with every document's tokens, in int8: one pass, nothing kept but maxima.

queries  uint8 [blocks, dim / 4, vectors, lanes, 4]   query tokens side by side, four numbers of each
tokens   int8 [T, dim]                                of all documents, one after the other
out      float32 [n, blocks * vectors * lanes]        max over the tokens p of a document of scale(p) * <q, p>

A tile of tokens meets a block of query tokens at a time: every product stays in a register until it is compared.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lessen.stored.kernels import machine
from lessen.stored.kernels.assembly import Assembly, floats, same, spread
from lessen.stored.kernels.dots import Dots, Machine, machine_of
from lessen.stored.kernels.functions import Function

NAMES = ("state", "queries", "tokens", "scales", "corrections", "starts", "documents", "count", "blocks", "out")
VECTORS = 2
"""Vectors of query tokens in a block."""
LOWEST = "0xFFF0000000000000"
"""Minus infinity."""
Compare = Callable[[Assembly, int, str, str, int, list[str]], None]
TILE = {16: 10, 8: 4}
"""Tokens of a tile by lanes: accumulators then fill the registers."""


@cache
def _machine() -> Machine:
    return machine_of(machine.features())


def lanes() -> int:
    """Return the query tokens of a vector."""
    return _machine().lanes


def width() -> int:
    """Return the query tokens of a block."""
    return VECTORS * lanes()


def packed_queries(codes: Tensor) -> Tensor:
    """Return query codes int8 [Q, dim] as the kernel reads them, uint8 [blocks, dim / 4, vectors, lanes, 4]."""
    count, dim = codes.shape
    padded = torch.nn.functional.pad(codes, (0, 0, 0, -count % width()))
    shifted = padded if _machine().turned(8) else (padded.short() + 128).to(torch.uint8)
    blocks = shifted.view(torch.uint8).view(-1, VECTORS, lanes(), dim // 4, 4)
    return blocks.permute(0, 3, 1, 2, 4).contiguous()


def corrections(codes: Tensor) -> Tensor:
    """Return what unsigned query codes add to the products of each token, int32 [T], for int8 [T, dim]."""
    return torch.zeros(len(codes), dtype=torch.int32) if _machine().turned(8) else 128 * codes.sum(1, dtype=torch.int32)


def best_products(
    queries: Tensor, tokens: Tensor, scales: Tensor, added: Tensor, starts: Tensor, documents: Tensor
) -> Tensor:
    """Return float32 [n, blocks * width] for documents int64 [n], in steps of the query codes.

    Args:
        queries: of `packed_queries`; tokens: int8 [T, dim]; scales: float32 [T]; added: of `corrections`.
        starts: int64 [n + 1], the first token of each document and the end.
    """
    out = torch.empty(len(documents), len(queries) * width())
    state = (ctypes.c_int64 * 3)(1, 0, 0)
    places = [tensor.data_ptr() for tensor in (queries, tokens, scales, added, starts, documents)]
    values = [ctypes.addressof(state), *places, len(documents), len(queries), out.data_ptr()]
    arguments = (ctypes.c_int64 * len(values))(*values)
    machine.run(_kernel(tokens.shape[1]), arguments, 1)
    return out


@cache
def _kernel(dim: int) -> int:
    return machine.compiled(_text(dim))


def _text(dim: int) -> str:
    return walk(dim, "i8", TILE[lanes()], _tile)


def walk(dim: int, kind: str, tile: int, compare: Compare) -> str:
    """Return a kernel that goes through documents, blocks of query tokens and tiles of `tile` tokens.

    Args:
        kind: of a number of the packed queries.
        compare: writes how some tokens meet a block of the query; see `_tile`.
    """
    function = Function(NAMES)
    code, size = function.code, lanes()
    row = code.multiply("%blocks", VECTORS * size)
    with code.loop("0", "%count") as number:
        document = code.number("%documents", number)
        start = code.number("%starts", document)
        end = code.number("%starts", code.add(document, 1))
        place = code.place("%outptr", code.multiply(number, row), "float")
        with code.loop("0", "%blocks") as block:
            queries = code.place("%queriesptr", code.multiply(block, dim * VECTORS * size), kind)
            best = [code.variable(floats(size), same(size, "float", LOWEST)) for _ in range(VECTORS)]
            for one in best:
                code.set(floats(size), same(size, "float", LOWEST), one)
            tiles = code.let(f"sdiv i64 {code.let(f'sub i64 {end}, {start}')}, {tile}")
            with code.loop("0", tiles) as turn:
                compare(code, dim, queries, code.add(start, code.multiply(turn, tile)), tile, best)
            with code.loop(code.add(start, code.multiply(tiles, tile)), end) as token:
                compare(code, dim, queries, token, 1, best)
            for vector, one in enumerate(best):
                at = code.add(code.multiply(block, VECTORS * size), vector * size)
                code.set(floats(size), code.get(floats(size), one), code.place(place, at, "float"))
    return function.text()


def keep_larger(code: Assembly, value: str, best: str) -> None:
    """Let each lane of the variable `best` be the value where that is larger."""
    kind, before = floats(lanes()), code.get(floats(lanes()), best)
    larger = code.let(f"fcmp ogt {kind} {value}, {before}")
    code.set(kind, code.let(f"select <{lanes()} x i1> {larger}, {kind} {value}, {kind} {before}"), best)


def _tile(code: Assembly, dim: int, queries: str, token: str, count: int, best: list[str]) -> None:
    """Compare the products of `count` tokens from `token` on with the best ones."""
    dots, size = Dots(code, _machine(), 8), lanes()
    kind, zero = f"<{size} x i32>", "zeroinitializer"
    vectors = len(best)
    totals = [[code.variable(kind, zero) for _ in range(vectors)] for _ in range(count)]
    for total in (one for row in totals for one in row):
        code.set(kind, zero, total)
    tokens = [code.place("%tokensptr", code.multiply(code.add(token, number), dim)) for number in range(count)]
    with code.loop("0", str(dim // 4)) as group:
        first = code.place(queries, code.multiply(group, 4 * size * vectors))
        codes = [code.get(f"<{4 * size} x i8>", code.place(first, str(4 * size * n))) for n in range(vectors)]
        four = code.multiply(group, 4)
        for place, row in zip(tokens, totals, strict=True):
            given = dots.activations(code.place(place, four))
            for own, total in zip(codes, row, strict=True):
                code.set(kind, dots.step(code.get(kind, total), own, given), total)
    for number, row in enumerate(totals):
        at = code.add(token, number)
        scale = spread(code, code.get("float", code.place("%scalesptr", at, "float")), size)
        added = code.get("i32", code.place("%correctionsptr", at, "i32"))
        every = spread(code, added, size, "i32")
        for total, one in zip(row, best, strict=True):
            exact = code.let(f"sub {kind} {code.get(kind, total)}, {every}")
            value = code.let(f"sitofp {kind} {exact} to {floats(size)}")
            product = code.let(f"fmul {floats(size)} {value}, {scale}")
            keep_larger(code, product, one)


def available() -> Any:
    """Tell whether the kernel can be made here."""
    return machine.available()
