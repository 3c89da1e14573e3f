"""The best product of each query token with every document's tokens, in int8: one pass, nothing kept but maxima.

queries  uint8 [blocks, dim / 4, planes, vectors, lanes, 4]   query tokens side by side, four numbers of each; the
                                                      second plane, if any, holds what rounding left of the first
tokens   int8 [T, dim]                                of all documents, one after the other
out      float32 [n, blocks * vectors * lanes]        max over the tokens p of a document of scale(p) * <q, p>

A tile of tokens meets a block of query tokens at a time: every product stays in a register until it is compared.
"""

from __future__ import annotations

import ctypes
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
FINER = 254
"""Steps of the second plane in one of the first: what rounding left is at most half a step."""
TILE = {16: 10, 8: 4}
"""Tokens of a tile by lanes: accumulators then fill the registers."""


@cache
def _machine() -> Machine:
    return machine_of(machine.features())


def width() -> int:
    """Return the query tokens of a block."""
    return VECTORS * _machine().lanes


def packed_queries(*planes: Tensor) -> Tensor:
    """Return query codes int8 [Q, dim], of one plane or two, as the kernel reads them, uint8 [blocks, dim / 4, ...]."""
    made = []
    for codes in planes:
        count, dim = codes.shape
        padded = torch.nn.functional.pad(codes, (0, 0, 0, -count % width()))
        shifted = padded if _machine().turned(8) else (padded.short() + 128).to(torch.uint8)
        blocks = shifted.view(torch.uint8).view(-1, VECTORS, _machine().lanes, dim // 4, 4)
        made.append(blocks.permute(0, 3, 1, 2, 4))
    return torch.stack(made, dim=2).contiguous()


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
    machine.run(_kernel(tokens.shape[1], queries.shape[2]), arguments, 1)
    return out


@cache
def _kernel(dim: int, planes: int) -> int:
    return machine.compiled(_text(dim, planes))


def _text(dim: int, planes: int) -> str:
    function = Function(NAMES)
    code, lanes = function.code, _machine().lanes
    row = code.multiply("%blocks", VECTORS * lanes)
    tile = TILE[lanes] // planes
    with code.loop("0", "%count") as number:
        document = code.number("%documents", number)
        start = code.number("%starts", document)
        end = code.number("%starts", code.add(document, 1))
        place = code.place("%outptr", code.multiply(number, row), "float")
        with code.loop("0", "%blocks") as block:
            queries = code.place("%queriesptr", code.multiply(block, dim * planes * VECTORS * lanes))
            best = [code.variable(floats(lanes), same(lanes, "float", "0xFFF0000000000000")) for _ in range(VECTORS)]
            for one in best:
                code.set(floats(lanes), same(lanes, "float", "0xFFF0000000000000"), one)
            tiles = code.let(f"sdiv i64 {code.let(f'sub i64 {end}, {start}')}, {tile}")
            with code.loop("0", tiles) as turn:
                _tile(code, dim, planes, queries, code.add(start, code.multiply(turn, tile)), tile, best)
            with code.loop(code.add(start, code.multiply(tiles, tile)), end) as token:
                _tile(code, dim, planes, queries, token, 1, best)
            for vector, one in enumerate(best):
                at = code.add(code.multiply(block, VECTORS * lanes), vector * lanes)
                code.set(floats(lanes), code.get(floats(lanes), one), code.place(place, at, "float"))
    return function.text()


def _tile(code: Assembly, dim: int, planes: int, queries: str, token: str, count: int, best: list[str]) -> None:
    """Compare the products of `count` tokens from `token` on with the best ones."""
    dots, lanes = Dots(code, _machine(), 8), _machine().lanes
    kind, zero = f"<{lanes} x i32>", "zeroinitializer"
    vectors = planes * len(best)
    totals = [[code.variable(kind, zero) for _ in range(vectors)] for _ in range(count)]
    for total in (one for row in totals for one in row):
        code.set(kind, zero, total)
    tokens = [code.place("%tokensptr", code.multiply(code.add(token, number), dim)) for number in range(count)]
    with code.loop("0", str(dim // 4)) as group:
        first = code.place(queries, code.multiply(group, 4 * lanes * vectors))
        codes = [code.get(f"<{4 * lanes} x i8>", code.place(first, str(4 * lanes * n))) for n in range(vectors)]
        four = code.multiply(group, 4)
        for place, row in zip(tokens, totals, strict=True):
            given = dots.activations(code.place(place, four))
            for own, total in zip(codes, row, strict=True):
                code.set(kind, dots.step(code.get(kind, total), own, given), total)
    for number, row in enumerate(totals):
        at = code.add(token, number)
        scale = spread(code, code.get("float", code.place("%scalesptr", at, "float")), lanes)
        added = code.get("i32", code.place("%correctionsptr", at, "i32"))
        wide = code.let(f"insertelement {kind} poison, i32 {added}, i32 0")
        every = code.let(f"shufflevector {kind} {wide}, {kind} poison, <{lanes} x i32> zeroinitializer")
        for vector, one in enumerate(best):
            value = ""
            for total in reversed(row[vector :: len(best)]):  # the finer plane first
                exact = code.let(f"sub {kind} {code.get(kind, total)}, {every}")
                own = code.let(f"sitofp {kind} {exact} to {floats(lanes)}")
                if value:
                    share = code.let(f"fdiv {floats(lanes)} {value}, {same(lanes, 'float', f'{FINER}.0')}")
                    own = code.let(f"fadd {floats(lanes)} {own}, {share}")
                value = own
            product = code.let(f"fmul {floats(lanes)} {value}, {scale}")
            before = code.get(floats(lanes), one)
            larger = code.let(f"fcmp ogt {floats(lanes)} {product}, {before}")
            better = f"select <{lanes} x i1> {larger}, {floats(lanes)} {product}, {floats(lanes)} {before}"
            code.set(floats(lanes), code.let(better), one)


def available() -> Any:
    """Tell whether the kernel can be made here."""
    return machine.available()
