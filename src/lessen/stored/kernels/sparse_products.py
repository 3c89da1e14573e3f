"""Products of sparse int8 weights with rows of int8: packed values are spread into registers as they are multiplied.

    panel of 64 outputs ─ step of 4 inputs ─ vector of 16 outputs:  a mask of 64 bits      masks lie in one stream,
                                                                    its values, packed     values in another

A step loads a mask and 64 bytes from where the values stand, spreads them by the mask (`vpexpandb`), multiplies them by
four activations and adds into 16 int32 sums (`vpdpbusd`), and moves on by the bits that were set. Activations are made
unsigned, 128 added: sums start at -128 * (sum of an output's weights), so that they are those of signed bytes.

    y[m, n] = (sum[m, n] * (step[m] * scale[n])) + bias[n]        rounded once at the end, as torch.addcmul does

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
from lessen.stored.kernels.assembly import Assembly, floats, multiply_add, spread
from lessen.stored.kernels.functions import Function, share
from lessen.stored.kernels.operands import SHARE, Activations, numbers, rounding_kernel
from lessen.stored.kernels.panels import Blocks
from lessen.stored.kernels.roundings import Rounding

LANES = 16
VECTORS = 4
OUTPUTS = LANES * VECTORS
"""Outputs of a panel."""
STEP = 4
"""Inputs of a step."""
WIDTH = LANES * STEP
TOGETHER = 4
"""Rows whose sums are held in registers."""
AHEAD, AHEAD_MASKS = 4096, 2048
"""Bytes ahead of what is multiplied that lines are asked for, where the processor does not foresee them."""
BYTES, SUMS, MASK = f"<{WIDTH} x i8>", f"<{LANES} x i32>", f"<{WIDTH} x i1>"
SIGN = -2139062144
"""The top bit of four bytes."""
HEAD = (
    "state", "masks", "values", "firsts", "starts", "scales", "biases", "count", "length", "rows", "stride", "steps",
    "blocks", "out", "width",
)  # fmt: skip
"""Arguments: addresses of masks, values, the first value of each panel, and of what all panels' outputs have: integer
that sums start with, scale and bias; panels; steps of a row; rows int8 and bytes from one to the next; float32 steps of
activations, the first of `blocks` a row; float32 outputs, `width` a row."""
FLOATS = floats(LANES)


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
    each = code.multiply("%length", 8 * VECTORS)
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
    with code.loop("0", "%length") as step:
        given = [_spread(code, code.place(one, code.multiply(step, STEP))) for one in rows]
        at = code.get("i64", cursor)
        asks = not machine.foresees()
        if asks:
            code.prefetch(code.place(masks, code.add(code.multiply(step, 8 * VECTORS), AHEAD_MASKS)), 8, aligned=True)
        for vector in range(VECTORS):
            if asks and vector % 2 == 0:  # two vectors of which half is kept are a line
                code.prefetch(code.let(f"inttoptr i64 {code.add(at, AHEAD)} to ptr"), 8, aligned=True)
            word = code.get("i64", code.place(masks, code.add(code.multiply(step, VECTORS), vector), "i64"))
            held = _expanded(code, word, at)
            at = code.add(at, code.call("i64", "llvm.ctpop.i64", ["i64"], [word]))
            for number in range(together):
                total = code.get(SUMS, sums[number, vector])
                code.set(SUMS, _dot(code, total, given[number], held), sums[number, vector])
        code.set("i64", at, cursor)
    for number in range(together):
        at = code.add(row, number)
        step = spread(code, code.get("float", code.place("%stepsptr", code.multiply(at, "%blocks"), "float")), LANES)
        out = code.place("%outptr", code.add(code.multiply(at, "%width"), column), "float")
        for vector in range(VECTORS):
            here = code.add(column, vector * LANES)
            scale, bias = (code.get(FLOATS, code.place(f"%{one}ptr", here, "float")) for one in ("scales", "biases"))
            whole = code.let(f"sitofp {SUMS} {code.get(SUMS, sums[number, vector])} to {FLOATS}")
            factor = code.let(f"fmul {FLOATS} {step}, {scale}")
            value = multiply_add(code, LANES, whole, factor, bias)
            code.set(FLOATS, value, code.place(out, str(vector * LANES), "float"))


def _spread(code: Assembly, place: str) -> str:
    """Return four activations at an address, made unsigned, for every output."""
    one = code.let(f"xor i32 {code.get('i32', place)}, {SIGN}")
    return spread(code, one, LANES, "i32")


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
    """A sparse int8 layer [out, in] in the order in which the kernel reads it, made once.

    `masks` int64 [panels, steps, vectors], `values` int8 with 64 more at the end, `firsts` int64 [panels]; `starts`
    int32, `scales` and `biases` float32 [panels * 64].
    """

    outputs: int
    blocks: Blocks
    masks: Tensor
    values: Tensor
    firsts: Tensor
    starts: Tensor
    scales: Tensor
    biases: Tensor

    @classmethod
    def of(cls, codes: Tensor, mask: Tensor, scales: Tensor, bias: Tensor | None) -> SparseOperand:
        """Arrange codes int8 [out, in], 0 where `mask`, bool of the same shape, is not set; scales and bias [out]."""
        outputs, inputs = codes.shape
        panels, steps = -(-outputs // OUTPUTS), -(-inputs // STEP)
        kept = _ordered(mask.to(torch.uint8), panels, steps).bool()
        shifts = torch.arange(WIDTH, dtype=torch.int64)
        masks = (kept.long() << shifts).sum(-1)
        values = _ordered(codes.view(torch.uint8), panels, steps).view(torch.int8)[kept]
        counts = kept.sum((1, 2, 3))
        filled = torch.cat([values, values.new_zeros(WIDTH)])
        starts = -128 * codes.sum(1, dtype=torch.int32)
        rows = [
            torch.nn.functional.pad(one, (0, panels * OUTPUTS - outputs))
            for one in (starts, scales.float(), torch.zeros(outputs) if bias is None else bias.float())
        ]
        return cls(outputs, Blocks(inputs, inputs), masks, filled, counts.cumsum(0) - counts, *rows)

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.masks, self.values, self.firsts, self.starts, self.scales, self.biases

    @property
    def _addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self._tensors]

    @property
    def bytes(self) -> int:
        """Bytes that it takes."""
        return sum(tensor.nbytes for tensor in self._tensors)

    def multiply(self, rows: Tensor) -> Tensor:
        """Return float32 [rows, out] for contiguous float32 [rows, in], which are rounded to int8 row by row."""
        count, panels = len(rows), len(self.firsts)
        out = torch.empty(count, panels * OUTPUTS, dtype=torch.float32, device="cpu")
        given, blocks = Activations.room(count, self.blocks), self.blocks
        threads = machine.threads_for(count * self.outputs * blocks.inputs // SHARE)
        state = numbers([int(threads == 1), count, 0])
        rounded = numbers([
            ctypes.addressof(state), rows.data_ptr(), blocks.inputs, *given.addresses(), blocks.count, blocks.row,
        ])  # fmt: skip
        machine.run(rounding_kernel(Rounding(blocks.size, blocks.tail, 0, across=True)), rounded, threads)
        whole = count // TOGETHER * TOGETHER
        for first, size, together in ((0, whole, TOGETHER), (whole, count - whole, 1)):
            if size:
                state = numbers([int(threads == 1), size, 0])
                arguments = numbers([
                    ctypes.addressof(state), *self._addresses, panels, self.masks.shape[1],
                    given.codes.data_ptr() + first * blocks.row, blocks.row,
                    given.steps.data_ptr() + 4 * first * blocks.all, blocks.all,
                    out.data_ptr() + 4 * first * panels * OUTPUTS, panels * OUTPUTS,
                ])  # fmt: skip
                machine.run(kernel(together), arguments, threads)
        return out[:, : self.outputs]


def _ordered(values: Tensor, panels: int, steps: int) -> Tensor:
    """Return bytes [out, in] as [panels, steps, vectors, 64]: lanes of four inputs; filled up with 0."""
    full = torch.zeros(panels * OUTPUTS, steps * STEP, dtype=torch.uint8)
    full[: values.shape[0], : values.shape[1]] = values
    split = full.view(panels, VECTORS, LANES, steps, STEP).permute(0, 3, 1, 2, 4)
    return split.reshape(panels, steps, VECTORS, WIDTH)
