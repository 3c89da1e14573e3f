"""Writes the kernels of a linear layer with few-bit weights and int8 activations: one row, and many.

One row reads the stream of a panel once, codes into products as they come: memory decides how long it takes. Many rows
turn a block into bytes once and hold sums of a tile of rows and outputs in registers meanwhile.

    y[m, n] = sum over blocks of  step[m] * scale[n] * (sum of code[n] * activation[m])  +  sum[m] * minimum[n]

Symmetric codes are counted from the middle: their integer sum starts at -middle * (sum of activations), which makes the
integers those of code - middle. Sums over blocks are float32, in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from lessen.stored.kernels.assembly import Assembly, floats, multiply_add, spread
from lessen.stored.kernels.dots import Dots, Machine
from lessen.stored.kernels.functions import Function, share
from lessen.stored.kernels.machine import foresees
from lessen.stored.kernels.panels import INPUTS, OUTPUTS, block_bytes, filled, placed

ROWS = 64
"""Rows that are summed while a block is held as bytes."""
AHEAD = {"vnni": 4096, "avx2": 2048, "plain": 2048}
"""Bytes from what one row reads to what it asks the memory for, where the processor does not foresee it."""
_CHAINS = 2
"""Sums of one row that are added to in turns."""
TILES = {"vnni": (8, 2), "avx2": (4, 2), "plain": (1, 1)}
"""Rows and vectors of outputs whose sums are held in registers."""
HEAD = (
    "state", "panels", "count", "outputs", "bias", "codes", "steps", "starts", "sums", "blocks", "stride", "out",
    "width", "add",
)  # fmt: skip
"""Arguments: addresses of panels (`count` of them), bias (or 0), activations and their steps, starting integers and
sums; full blocks of a row; bytes of a row of codes; address of the output, float32, `width` a row; whether to add."""


@dataclass(frozen=True)
class Product:
    """What the lines depend on: codes, inputs of a block and of the block at the end (0: none), and the grid.

    `scales`: "half" or "float", the kind of scales and minimums. `floats`: activations are float32, see `widened`.
    """

    machine: Machine
    bits: int
    inputs: int
    tail: int
    symmetric: bool
    scales: str = "half"
    floats: bool = False

    @property
    def offset(self) -> int:
        """What every sum of codes starts with, in sums of activations."""
        middle = 1 << (self.bits - 1)
        return (middle if self.machine.turned(self.bits) else 0) - (middle if self.symmetric else 0)

    def block_bytes(self, inputs: int) -> int:
        """Bytes of a block of a panel."""
        return block_bytes(self.bits, inputs, self.scale_bytes * (1 if self.symmetric else 2))

    @property
    def scale_bytes(self) -> int:
        """Bytes of a scale."""
        return 2 if self.scales == "half" else 4


@dataclass(frozen=True)
class Block:
    """One block while lines are written: where it starts, its number in the row, its inputs."""

    start: str
    number: str
    inputs: int


class Writer:
    """Writes both kernels of one product; `write` returns the assembly of `kernel(ptr)`."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.function = Function(HEAD)
        self.code: Assembly = self.function.code
        self.dots = Dots(self.code, product.machine, product.bits)
        self.lanes, self.vectors = product.machine.lanes, OUTPUTS // product.machine.lanes
        self.all = self.code.add("%blocks", 1 if product.tail else 0)

    def write(self, many: bool) -> str:
        """Return the assembly for many rows, or for one."""
        code, product = self.code, self.product
        size = product.block_bytes(product.inputs)
        bytes_each = code.add(code.multiply("%blocks", size), product.block_bytes(product.tail) if product.tail else 0)
        self.size, self.rows = size, self.function.state("rows")
        if many:
            self.found = code.room("float", ROWS * OUTPUTS)
            self.bytes = code.room("float" if product.floats else "i8", OUTPUTS * filled(product.inputs))
            self.grid = code.room("float", 2 * OUTPUTS)
        else:
            self.found = code.room("float", OUTPUTS)
        first, last = share(self.function, "%count")
        with code.loop(first, last) as panel:
            start = code.place("%panelsptr", code.multiply(panel, bytes_each))
            if many:
                self._many(start, panel)
            else:
                self._one(start, panel)
        return self.function.text()

    # one row

    def _one(self, start: str, panel: str) -> None:
        code, kind = self.code, floats(self.lanes)
        totals = [code.variable(kind, "zeroinitializer") for _ in range(self.vectors)]
        for total in totals:
            code.set(kind, "zeroinitializer", total)
        with code.loop("0", "%blocks") as number:
            self._one_block(
                Block(code.place(start, code.multiply(number, self.size)), number, self.product.inputs), totals
            )
        if self.product.tail:
            place = code.place(start, code.multiply("%blocks", self.size))
            self._one_block(Block(place, "%blocks", self.product.tail), totals)
        for vector, total in enumerate(totals):
            code.set(kind, code.get(kind, total), code.place(self.found, str(vector * self.lanes), "float"))
        self._finish(panel, "0", self.found)

    def _one_block(self, block: Block, totals: list[str]) -> None:
        code, dots = self.code, self.dots
        given = code.place("%codesptr", code.multiply(block.number, filled(self.product.inputs)))
        first = self._start(block.number)
        sums = [code.variable(dots.sums, "zeroinitializer") for _ in range(self.vectors)]
        for one in sums:
            code.set(dots.sums, first, one)
        with code.loop("0", str(filled(block.inputs) // INPUTS)) as part:
            place = code.place(block.start, code.multiply(part, OUTPUTS * INPUTS * self.product.bits // 8))
            here = code.place(given, code.multiply(part, INPUTS))
            self._ask(place)
            steps = [dots.activations(code.place(here, str(4 * step))) for step in range(8)]
            for vector, one in enumerate(sums):
                self._eight(one, self._unpacked(place, vector), steps)
        scales, minimums = self._grid(block)
        step = spread(code, code.get("float", code.place("%stepsptr", block.number, "float")), self.lanes)
        shift = code.get("float", code.place("%sumsptr", block.number, "float"))
        kind = floats(self.lanes)
        for vector, (one, total) in enumerate(zip(sums, totals, strict=True)):
            whole = code.let(f"sitofp {dots.sums} {code.get(dots.sums, one)} to {kind}")
            factor = code.let(f"fmul {kind} {scales[vector]}, {step}")
            value = multiply_add(code, self.lanes, whole, factor, code.get(kind, total))
            if minimums:
                value = multiply_add(code, self.lanes, minimums[vector], spread(code, shift, self.lanes), value)
            code.set(kind, value, total)

    def _ask(self, place: str) -> None:
        """Ask the memory for what lies some way behind the codes of 32 inputs."""
        if not foresees():
            size = OUTPUTS * INPUTS * self.product.bits // 8
            self.code.prefetch(self.code.place(place, str(AHEAD[self.product.machine.dots])), size, aligned=True)

    def _eight(self, total: str, codes: list[str], steps: list[str]) -> None:
        """Add eight steps to the int32 sums at an address, in sums side by side: none waits for the one before."""
        code, dots = self.code, self.dots
        values, narrow = [code.get(dots.sums, total), *["zeroinitializer"] * (_CHAINS - 1)], ""
        for number, (one, step) in enumerate(zip(codes, steps, strict=True)):
            chain = number % _CHAINS
            if not dots.narrow:
                values[chain] = dots.step(values[chain], one, step)
                continue
            narrow = dots.step(narrow, one, step)
            if (number + 1) % min(dots.period, 8) == 0 or number == 7:
                values[0], narrow = dots.widened(values[0], narrow), ""
        for value in values[1:] if not dots.narrow else []:
            values[0] = code.let(f"add {dots.sums} {values[0]}, {value}")
        code.set(dots.sums, values[0], total)

    # many rows

    def _many(self, start: str, panel: str) -> None:
        code = self.code
        groups = code.let(f"sdiv i64 {code.add(self.rows, ROWS - 1)}, {ROWS}")
        with code.loop("0", groups) as group:
            first = code.multiply(group, ROWS)
            left = code.let(f"sub i64 {self.rows}, {first}")
            rows = code.choose(code.compare("slt", left, ROWS), left, ROWS)
            with code.loop("0", code.multiply(rows, self.vectors)) as place:
                here = code.place(self.found, code.multiply(place, self.lanes), "float")
                code.set(floats(self.lanes), "zeroinitializer", here)
            with code.loop("0", "%blocks") as number:
                block = Block(code.place(start, code.multiply(number, self.size)), number, self.product.inputs)
                self._many_block(block, first, rows)
            if self.product.tail:
                place = code.place(start, code.multiply("%blocks", self.size))
                self._many_block(Block(place, "%blocks", self.product.tail), first, rows)
            with code.loop("0", rows) as row:
                here = code.place(self.found, code.multiply(row, OUTPUTS), "float")
                self._finish(panel, code.add(first, row), here)

    def _many_block(self, block: Block, first: str, rows: str) -> None:
        """Hold a block as bytes and floats; add its products with some rows to what was found."""
        code, machine = self.code, self.product.machine
        parts = filled(block.inputs) // INPUTS
        with code.loop("0", str(parts)) as part:
            place = code.place(block.start, code.multiply(part, OUTPUTS * INPUTS * self.product.bits // 8))
            for vector in range(self.vectors):
                self._keep(part, vector, self._unpacked(place, vector))
        scales, minimums = self._grid(block)
        for number, value in enumerate([*scales, *minimums]):
            code.set(floats(self.lanes), value, code.place(self.grid, str(number * self.lanes), "float"))
        tall, wide = TILES[machine.dots]
        tiles = code.let(f"sdiv i64 {rows}, {tall}")
        with code.loop("0", tiles) as tile, code.loop("0", str(self.vectors // wide)) as part:
            self._tile(block, first, code.multiply(tile, tall), tall, code.multiply(part, wide), wide)
        with code.loop(code.multiply(tiles, tall), rows) as row:
            self._tile(block, first, row, 1, "0", self.vectors)

    def _keep(self, part: str, vector: int, steps: list[str]) -> None:
        """Store the codes of 32 inputs for a vector of outputs."""
        code, machine = self.code, self.product.machine
        target = code.place(self.bytes, code.multiply(part, OUTPUTS * INPUTS))
        for step, value in enumerate(steps):
            offset = (step * self.vectors + vector) * machine.width
            code.set(self.dots.bytes, value, code.place(target, str(offset)))

    def _tile(self, block: Block, first: str, row: str, tall: int, side: str, wide: int) -> None:
        """Add the products of a block with `tall` rows to `wide` vectors of what was found, from number `side` on."""
        code, dots, product = self.code, self.dots, self.product
        vectors = range(wide)
        left = code.multiply(side, self.lanes)
        at = [code.add(code.add(first, row), number) for number in range(tall)]
        inside = code.multiply(block.number, filled(product.inputs))
        given = [code.place("%codesptr", code.add(code.multiply(one, "%stride"), inside)) for one in at]
        places = [code.add(code.multiply(one, self.all), block.number) for one in at]
        sums: dict[tuple[int, int], str] = {}
        for number, place in enumerate(places):
            start = self._start(place)
            for vector in vectors:
                sums[number, vector] = code.variable(dots.sums, "zeroinitializer")
                code.set(dots.sums, start, sums[number, vector])
        parts = filled(block.inputs) // INPUTS
        steps = 1 if product.machine.dots == "plain" else 16 if parts % 2 == 0 else 8
        with code.loop("0", str(8 * parts // steps)) as part:
            place = code.add(code.multiply(part, steps * 4 * OUTPUTS), code.multiply(left, 4))
            here = [code.place(one, code.multiply(part, steps * 4)) for one in given]
            self._steps(sums, vectors, code.place(self.bytes, place), here, steps)
        kind = floats(self.lanes)
        for number, place in enumerate(places):
            step = spread(code, code.get("float", code.place("%stepsptr", place, "float")), self.lanes)
            shift = code.place("%sumsptr", place, "float")
            for vector in vectors:
                column = code.add(left, vector * self.lanes)
                target = code.place(
                    self.found, code.add(code.multiply(code.add(row, number), OUTPUTS), column), "float"
                )
                whole = code.let(f"sitofp {dots.sums} {code.get(dots.sums, sums[number, vector])} to {kind}")
                scale = code.get(kind, code.place(self.grid, column, "float"))
                factor = code.let(f"fmul {kind} {scale}, {step}")
                value = multiply_add(code, self.lanes, whole, factor, code.get(kind, target))
                if not product.symmetric:
                    low = code.get(kind, code.place(self.grid, code.add(column, OUTPUTS), "float"))
                    value = multiply_add(
                        code, self.lanes, low, spread(code, code.get("float", shift), self.lanes), value
                    )
                code.set(kind, value, target)

    def _steps(
        self, sums: dict[tuple[int, int], str], vectors: range, weights: str, given: list[str], count: int
    ) -> None:
        """Write steps for all sums of a tile: weights and activations of a step are read once."""
        code, dots = self.code, self.dots
        totals = {key: code.get(dots.sums, place) for key, place in sums.items()}
        narrow = dict.fromkeys(sums, "")
        for step in range(count):
            held = {
                vector: code.get(
                    dots.bytes, code.place(weights, str((step * self.vectors + vector) * dots.machine.width))
                )
                for vector in vectors
            }
            for number, place in enumerate(given):
                value = dots.activations(code.place(place, str(4 * step)))
                for vector in vectors:
                    key = number, vector
                    if dots.narrow:
                        narrow[key] = dots.step(narrow[key], held[vector], value)
                    else:
                        totals[key] = dots.step(totals[key], held[vector], value)
            if dots.narrow and ((step + 1) % dots.period == 0 or step == count - 1):
                totals = {key: dots.widened(totals[key], narrow[key]) for key in sums}
                narrow = dict.fromkeys(sums, "")
        for key, place in sums.items():
            code.set(dots.sums, totals[key], place)

    # both

    def _start(self, place: str) -> str:
        """Return the integers that sums of a block start with."""
        if self.product.offset == 0:
            return "zeroinitializer"
        one = self.code.get("i32", self.code.place("%startsptr", place, "i32"))
        return spread(self.code, one, self.lanes, "i32")

    def _unpacked(self, place: str, vector: int) -> list[str]:
        """Return the codes of 32 inputs for a vector of outputs: eight steps of bytes."""
        code, bits, width = self.code, self.product.bits, self.product.machine.width
        halves = f"<{width // 2} x i16>"
        found = [""] * 8
        offset = vector * bits * width
        for low, size in placed(bits):
            for number in range(size):
                value = code.get(self.dots.bytes, code.place(place, str(offset)))
                offset += width
                for part in range(8 // size):
                    field = self._field(value, part * size - low, size, low, halves) if size < 8 else value
                    step = number * (8 // size) + part
                    found[step] = code.let(f"or {self.dots.bytes} {found[step]}, {field}") if found[step] else field
        return found

    def _field(self, value: str, right: int, size: int, low: int, halves: str) -> str:
        """Return some bits of each byte, moved right (left if negative), all others 0."""
        code, kind, width = self.code, self.dots.bytes, self.product.machine.width
        if right:
            pairs = code.let(f"bitcast {kind} {value} to {halves}")
            how, count = ("lshr", right) if right > 0 else ("shl", -right)
            moved = code.let(f"{how} {halves} {pairs}, <{', '.join([f'i16 {count}'] * (width // 2))}>")
            value = code.let(f"bitcast {halves} {moved} to {kind}")
        mask = ((1 << size) - 1) << low
        return code.let(f"and {kind} {value}, <{', '.join([f'i8 {mask - 256 if mask > 127 else mask}'] * width)}>")

    def _grid(self, block: Block) -> tuple[list[str], list[str]]:
        """Return scales and minimums of a block, a vector of float32 each; no minimums where symmetric."""
        code, kind = self.code, floats(self.lanes)
        place = code.place(block.start, str(OUTPUTS * filled(block.inputs) * self.product.bits // 8))
        tables: list[list[str]] = [[], []]
        for table, found in enumerate(tables[: 1 if self.product.symmetric else 2]):
            for vector in range(self.vectors):
                offset = self.product.scale_bytes * (table * OUTPUTS + vector * self.lanes)
                value = code.get(f"<{self.lanes} x {self.product.scales}>", code.place(place, str(offset)))
                half = self.product.scales == "half"
                found.append(code.let(f"fpext <{self.lanes} x half> {value} to {kind}") if half else value)
        return tables[0], tables[1]

    def _finish(self, panel: str, row: str, found: str) -> None:
        """Write the outputs of a panel that exist, one row, with the bias, on what is there or in its place."""
        code = self.code
        first = code.multiply(panel, OUTPUTS)
        left = code.let(f"sub i64 %outputs, {first}")
        target = code.place("%outptr", code.add(code.multiply(row, "%width"), first), "float")
        whole = code.compare("sge", left, OUTPUTS)
        with code.when(whole):
            for vector in range(self.vectors):
                self._put(first, vector * self.lanes, found, target, floats(self.lanes))
        with code.when(code.let(f"xor i1 {whole}, true")), code.loop("0", left) as number:
            self._put(first, number, found, target, "float")

    def _put(self, first: str, number: str | int, found: str, target: str, kind: str) -> None:
        """Write some outputs from number `number` of the panel on."""
        code = self.code
        value = code.variable(kind, "zeroinitializer")
        code.set(kind, code.get(kind, code.place(found, str(number), "float")), value)
        there = code.place(target, str(number), "float")
        with code.when(code.compare("ne", "%bias", 0)):
            bias = code.get(kind, code.place("%biasptr", code.add(first, number), "float"))
            code.set(kind, code.let(f"fadd {kind} {code.get(kind, value)}, {bias}"), value)
        with code.when(code.compare("ne", "%add", 0)):
            code.set(kind, code.let(f"fadd {kind} {code.get(kind, value)}, {code.get(kind, there)}"), value)
        code.set(kind, code.get(kind, value), there)
