"""Writes the kernels of a linear layer with few-bit weights and float32 activations: codes are widened, inputs stay.

The stream of a panel is that of integer products (`products`); what differs is the arithmetic:

    y[m, n] = sum over blocks of  scale[n] * (sum of code[n] * x[m])  +  (sum of x[m]) * minimum[n]

A block's sum goes over its inputs in order, by multiply-adds in float32, for one row as for many: a row's outputs do
not depend on the rows beside it. Symmetric codes are as if they had the minimum -middle * scale.
"""

from __future__ import annotations

from lessen.stored.kernels.assembly import floats, multiply_add, same, spread
from lessen.stored.kernels.panels import INPUTS, OUTPUTS, filled
from lessen.stored.kernels.products import Block, Writer


class Widened(Writer):
    """Writes both kernels; `codes` of the arguments are float32 rows in blocks that are filled up, `stride` floats."""

    @property
    def _kind(self) -> str:
        return floats(self.lanes)

    def _one_block(self, block: Block, totals: list[str]) -> None:
        code = self.code
        given = code.place("%codesptr", code.multiply(block.number, filled(self.product.inputs)), "float")
        sums = [code.variable(self._kind, "zeroinitializer") for _ in totals]
        for one in sums:
            code.set(self._kind, "zeroinitializer", one)
        with code.loop("0", str(filled(block.inputs) // INPUTS)) as part:
            place = code.place(block.start, code.multiply(part, OUTPUTS * INPUTS * self.product.bits // 8))
            self._ask(place)
            here = code.place(given, code.multiply(part, INPUTS), "float")
            for vector, one in enumerate(sums):
                value = code.get(self._kind, one)
                for step, codes in enumerate(self._unpacked(place, vector)):
                    for number in range(4):
                        value = self._more(
                            value, self._level(codes, number), code.place(here, str(4 * step + number), "float")
                        )
                code.set(self._kind, value, one)
        scales, minimums = self._grid(block)
        shift = spread(code, code.get("float", code.place("%sumsptr", block.number, "float")), self.lanes)
        for vector, (one, total) in enumerate(zip(sums, totals, strict=True)):
            value = multiply_add(
                code, self.lanes, code.get(self._kind, one), scales[vector], code.get(self._kind, total)
            )
            code.set(self._kind, multiply_add(code, self.lanes, minimums[vector], shift, value), total)

    def _keep(self, part: str, vector: int, steps: list[str]) -> None:
        """Store the codes of 32 inputs for a vector of outputs as floats, an input after the other."""
        code = self.code
        target = code.place(self.bytes, code.multiply(part, OUTPUTS * INPUTS), "float")
        for step, codes in enumerate(steps):
            for number in range(4):
                offset = (4 * step + number) * OUTPUTS + vector * self.lanes
                code.set(self._kind, self._level(codes, number), code.place(target, str(offset), "float"))

    def _tile(self, block: Block, first: str, row: str, tall: int, side: str, wide: int) -> None:
        """Add the products of a block with `tall` rows to `wide` vectors of what was found, from number `side` on."""
        code, kind = self.code, self._kind
        left = code.multiply(side, self.lanes)
        at = [code.add(code.add(first, row), number) for number in range(tall)]
        inside = code.multiply(block.number, filled(self.product.inputs))
        given = [code.place("%codesptr", code.add(code.multiply(one, "%stride"), inside), "float") for one in at]
        sums = {
            (number, vector): code.variable(kind, "zeroinitializer") for number in range(tall) for vector in range(wide)
        }
        for one in sums.values():
            code.set(kind, "zeroinitializer", one)
        with code.loop("0", str(filled(block.inputs) // 8)) as part:
            for step in range(8):
                number = code.add(code.multiply(part, 8), step)
                place = code.place(self.bytes, code.add(code.multiply(number, OUTPUTS), left), "float")
                held = [code.get(kind, code.place(place, str(vector * self.lanes), "float")) for vector in range(wide)]
                for tile, start in enumerate(given):
                    value = spread(code, code.get("float", code.place(start, number, "float")), self.lanes)
                    for vector in range(wide):
                        total = code.get(kind, sums[tile, vector])
                        code.set(kind, multiply_add(code, self.lanes, value, held[vector], total), sums[tile, vector])
        for tile, one in enumerate(at):
            shift = code.place("%sumsptr", code.add(code.multiply(one, self.all), block.number), "float")
            shifts = spread(code, code.get("float", shift), self.lanes)
            for vector in range(wide):
                column = code.add(left, vector * self.lanes)
                target = code.place(self.found, code.add(code.multiply(code.add(row, tile), OUTPUTS), column), "float")
                scale = code.get(kind, code.place(self.grid, column, "float"))
                low = code.get(kind, code.place(self.grid, code.add(column, OUTPUTS), "float"))
                value = multiply_add(
                    code, self.lanes, code.get(kind, sums[tile, vector]), scale, code.get(kind, target)
                )
                code.set(kind, multiply_add(code, self.lanes, low, shifts, value), target)

    def _grid(self, block: Block) -> tuple[list[str], list[str]]:
        """Return scales and minimums of a block, those of symmetric codes made up."""
        scales, minimums = super()._grid(block)
        if self.product.symmetric:
            middle = same(self.lanes, "float", -float(1 << (self.product.bits - 1)))
            minimums = [self.code.let(f"fmul {self._kind} {one}, {middle}") for one in scales]
        return scales, minimums

    def _level(self, codes: str, number: int) -> str:
        """Return input `number` of each four bytes as float32."""
        code, whole = self.code, self.dots.sums
        fours = code.let(f"bitcast {self.dots.bytes} {codes} to {whole}")
        if self.product.machine.turned(self.product.bits):
            fours = code.let(f"xor {whole} {fours}, {same(self.lanes, 'i32', -0x7F7F7F80)}")
        if number:
            fours = code.let(f"lshr {whole} {fours}, {same(self.lanes, 'i32', 8 * number)}")
        if number < 3:
            fours = code.let(f"and {whole} {fours}, {same(self.lanes, 'i32', 255)}")
        return code.let(f"sitofp {whole} {fours} to {self._kind}")

    def _more(self, total: str, levels: str, place: str) -> str:
        return multiply_add(
            self.code, self.lanes, spread(self.code, self.code.get("float", place), self.lanes), levels, total
        )
