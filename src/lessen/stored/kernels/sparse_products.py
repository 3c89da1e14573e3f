"""Products of sparse int8 weights with rows of int8: packed values are spread into registers as they are multiplied.

    panel of 64 outputs ─ step of 4 inputs ─ vector of 16 outputs:  a mask of 64 bits      masks lie in one stream,
                                                                    its values, packed     values in another

A step loads a mask and 64 bytes from where the values stand, spreads them by the mask (`vpexpandb`), multiplies them by
four activations and adds into 16 int32 sums (`vpdpbusd`), and moves on by the bits that were set. Activations are held
as unsigned bytes, 128 added: sums start at -128 * (sum of an output's weights), so that they are those of signed bytes.

Needs AVX-512 with VBMI2 and VNNI. What is read is 1 bit a weight and 8 for each that is kept, in place of 8: beyond the
caches, where memory decides, that is the gain; inside, spreading costs more than the bytes it saves.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lessen.stored.kernels import machine
from lessen.stored.kernels.assembly import Assembly
from lessen.stored.kernels.functions import Function, share
from lessen.stored.kernels.operands import SHARE, numbers

LANES = 16
VECTORS = 4
OUTPUTS = LANES * VECTORS
"""Outputs of a panel."""
STEP = 4
"""Inputs of a step."""
WIDTH = LANES * STEP
TOGETHER = 4
"""Rows whose sums are held in registers."""
AHEAD = 1024
"""Bytes that values are asked for ahead of their use."""
BYTES, SUMS, MASK = f"<{WIDTH} x i8>", f"<{LANES} x i32>", f"<{WIDTH} x i1>"
HEAD = ("state", "masks", "values", "firsts", "starts", "count", "outputs", "steps", "rows", "stride", "out", "width")
"""Arguments: addresses of masks, values, the first value of each panel, and the integers that sums start with (of all
panels); panels; outputs; steps of a row; address of unsigned rows and bytes from one to the next; int32 sums, `width` a
row."""


@cache
def possible() -> bool:
    """Tell whether the kernel can be made here."""
    if not machine.available():
        return False
    features = machine.features()
    return all(features.get(name) for name in ("avx512vbmi2", "avx512vnni", "avx512bw", "avx512vl"))


@cache
def kernel(together: int) -> int:
    """Return the address of the kernel for so many rows at a time, compiled when first asked for."""
    return machine.compiled(write(together), as_written=True)


def write(together: int) -> str:
    """Return the assembly of `kernel(ptr)`, which takes rows in groups of `together` and leaves what is over."""
    function = Function(HEAD)
    code = function.code
    first, last = share(function, "%count")
    groups = code.let(f"sdiv i64 {function.state('rows')}, {together}")
    each = code.multiply("%steps", 8 * VECTORS)
    with code.loop(first, last) as panel, code.loop("0", groups) as group:
        masks = code.place("%masksptr", code.multiply(panel, each))
        values = code.place("%valuesptr", code.get("i64", code.place("%firstsptr", panel, "i64")))
        _panel(code, panel, code.multiply(group, together), masks, values, together)
    return function.text()


def _panel(code: Assembly, panel: str, row: str, masks: str, values: str, together: int) -> None:
    """Write the sums of a panel with some rows."""
    column = code.multiply(panel, OUTPUTS)
    rows = [code.place("%rowsptr", code.multiply(code.add(row, number), "%stride")) for number in range(together)]
    sums = {(r, v): code.variable(SUMS, "zeroinitializer") for r in range(together) for v in range(VECTORS)}
    for vector in range(VECTORS):
        start = code.get(SUMS, code.place("%startsptr", code.add(column, vector * LANES), "i32"))
        for number in range(together):
            code.set(SUMS, start, sums[number, vector])
    cursor = code.variable("i64", "0")
    code.set("i64", code.let(f"ptrtoint ptr {values} to i64"), cursor)
    with code.loop("0", "%steps") as step:
        given = [_spread(code, code.place(one, code.multiply(step, STEP))) for one in rows]
        at = code.get("i64", cursor)
        code.prefetch(code.let(f"inttoptr i64 {code.add(at, AHEAD)} to ptr"), WIDTH * VECTORS // 2, aligned=True)
        for vector in range(VECTORS):
            word = code.get("i64", code.place(masks, code.add(code.multiply(step, VECTORS), vector), "i64"))
            held = _expanded(code, word, at)
            at = code.add(at, code.call("i64", "llvm.ctpop.i64", ["i64"], [word]))
            for number in range(together):
                total = code.get(SUMS, sums[number, vector])
                code.set(SUMS, _dot(code, total, given[number], held), sums[number, vector])
        code.set("i64", at, cursor)
    for number in range(together):
        out = code.place("%outptr", code.add(code.multiply(code.add(row, number), "%width"), column), "i32")
        for vector in range(VECTORS):
            code.set(SUMS, code.get(SUMS, sums[number, vector]), code.place(out, str(vector * LANES), "i32"))


def _spread(code: Assembly, place: str) -> str:
    """Return four activations at an address, for every output."""
    one = code.get("i32", place)
    first = code.let(f"insertelement {SUMS} poison, i32 {one}, i32 0")
    return code.let(f"shufflevector {SUMS} {first}, {SUMS} poison, <{LANES} x i32> zeroinitializer")


def _expanded(code: Assembly, word: str, at: str) -> str:
    """Return the values that lie at an address, as integers of four bytes, where the bits of a mask are set; else 0."""
    packed = code.get(BYTES, code.let(f"inttoptr i64 {at} to ptr"))
    mask = code.let(f"bitcast i64 {word} to {MASK}")
    found = code.call(
        BYTES, "llvm.x86.avx512.mask.expand.v64i8", [BYTES, BYTES, MASK], [packed, "zeroinitializer", mask]
    )
    return code.let(f"bitcast {BYTES} {found} to {SUMS}")


def _dot(code: Assembly, total: str, given: str, held: str) -> str:
    return code.call(SUMS, "llvm.x86.avx512.vpdpbusd.512", [SUMS] * 3, [total, given, held])


@dataclass(frozen=True, eq=False)
class SparseOperand:
    """A sparse int8 matrix [out, in] in the order in which the kernel reads it, made once.

    `masks` int64 [panels, steps, vectors], `values` int8 with 64 more at the end, `firsts` int64 [panels], `starts`
    int32 [panels * 64].
    """

    outputs: int
    inputs: int
    masks: Tensor
    values: Tensor
    firsts: Tensor
    starts: Tensor

    @classmethod
    def of(cls, codes: Tensor, mask: Tensor) -> SparseOperand:
        """Arrange codes int8 [out, in], 0 where `mask`, bool of the same shape, is not set."""
        outputs, inputs = codes.shape
        panels, steps = -(-outputs // OUTPUTS), -(-inputs // STEP)
        kept = _ordered(mask.to(torch.uint8), panels, steps).bool()
        shifts = torch.arange(WIDTH, dtype=torch.int64)
        masks = (kept.long() << shifts).sum(-1)
        values = _ordered(codes.view(torch.uint8), panels, steps).view(torch.int8)[kept]
        counts = kept.sum((1, 2, 3))
        starts = torch.zeros(panels * OUTPUTS, dtype=torch.int32)
        starts[:outputs] = -128 * codes.sum(1, dtype=torch.int32)
        filled = torch.cat([values, values.new_zeros(WIDTH)])
        return cls(outputs, inputs, masks, filled, counts.cumsum(0) - counts, starts)

    @property
    def bytes(self) -> int:
        """Bytes that it takes."""
        return self.masks.nbytes + self.values.nbytes + self.firsts.nbytes + self.starts.nbytes

    def sums(self, rows: Tensor) -> Tensor:
        """Return int32 [rows, out], the products with int8 [rows, in]."""
        count, panels, steps = len(rows), len(self.firsts), self.masks.shape[1]
        given = torch.full((count, steps * STEP), 128, dtype=torch.uint8)
        torch.bitwise_xor(rows.view(torch.uint8), 128, out=given[:, : self.inputs])
        out = torch.empty(count, panels * OUTPUTS, dtype=torch.int32)
        threads = machine.threads_for(count * self.outputs * self.inputs // SHARE)
        whole = count // TOGETHER * TOGETHER
        for first, size, together in ((0, whole, TOGETHER), (whole, count - whole, 1)):
            if not size:
                continue
            state = numbers([int(threads == 1), size, 0])
            arguments = numbers([
                ctypes.addressof(state), self.masks.data_ptr(), self.values.data_ptr(), self.firsts.data_ptr(),
                self.starts.data_ptr(), panels, self.outputs, steps, given[first:].data_ptr(), given.shape[1],
                out[first:].data_ptr(), out.shape[1],
            ])  # fmt: skip
            machine.run(kernel(together), arguments, threads)
        return out[:, : self.outputs]


def _ordered(values: Tensor, panels: int, steps: int) -> Tensor:
    """Return bytes [out, in] as [panels, steps, vectors, 64]: lanes of four inputs; filled up with 0."""
    full = torch.zeros(panels * OUTPUTS, steps * STEP, dtype=torch.uint8)
    full[: values.shape[0], : values.shape[1]] = values
    split = full.view(panels, VECTORS, LANES, steps, STEP).permute(0, 3, 1, 2, 4)
    return split.reshape(panels, steps, VECTORS, WIDTH)
