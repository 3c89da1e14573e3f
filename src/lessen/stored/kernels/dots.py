"""Products of unsigned codes with int8 activations, four inputs at a time, as each processor does them best.

A vector holds `lanes` outputs with four inputs each, a byte an input. A step multiplies it by four activations, the
same for all outputs, and adds into one int32 an output:

    vnni    one instruction (`vpdpbusd`) with 256 or 512 bits: exact, int32 sums
    avx2    `vpmaddubsw` adds pairs in int16. Codes of up to 6 bits are summed there for as many steps as cannot
            overflow, then widened. Codes of 8 bits are stored with their top bit turned (code - 128) and take the
            detour over |code| and the activation with the sign of the code: two products of at most 128 * 127 fit.
    plain   multiplications and additions that every processor has

All give the same integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lessen.stored.kernels.assembly import Assembly, same, spread

LARGEST = 127
"""Largest size of an activation's code."""


@dataclass(frozen=True)
class Machine:
    """What products are written for.

    Attributes:
        dots: "vnni", "avx2" or "plain".
        lanes: outputs that a vector holds.
    """

    dots: str
    lanes: int

    @property
    def width(self) -> int:
        """Bytes of a vector."""
        return 4 * self.lanes

    def turned(self, bits: int) -> bool:
        """Tell whether codes of so many bits are stored with their top bit turned, as signed numbers."""
        return self.dots == "avx2" and bits == 8


def machine_of(features: Mapping[str, bool]) -> Machine:
    """Return the best machine for what LLVM says that the processor has."""
    if all(features.get(name) for name in ("avx512vnni", "avx512bw", "avx512vl")):
        return Machine("vnni", 16)
    if features.get("avxvnni"):
        return Machine("vnni", 8)
    return Machine("avx2" if features.get("avx2") else "plain", 8)


class Dots:
    """Writes the steps for codes of some bits."""

    def __init__(self, code: Assembly, machine: Machine, bits: int) -> None:
        self.code, self.machine, self.bits = code, machine, bits
        self.bytes, self.sums = f"<{machine.width} x i8>", f"<{machine.lanes} x i32>"
        self.narrow = machine.dots == "avx2" and bits < 8
        """Steps are summed in int16 first."""
        self.period = ((1 << 15) - 1) // (2 * LARGEST * ((1 << bits) - 1)) if self.narrow else 1
        """Steps whose sum fits int16."""

    def activations(self, place: str) -> str:
        """Return four activations at an address, for every output."""
        one = self.code.get("i32", place)
        every = spread(self.code, one, self.machine.lanes, "i32")
        return self.code.let(f"bitcast {self.sums} {every} to {self.bytes}")

    def step(self, total: str, codes: str, given: str) -> str:
        """Return the total after a step: of kind `sums`, or of int16 where `narrow` ("" for none yet)."""
        if self.narrow:
            return self._pairs(total, codes, given)
        ways = {"vnni": self._vnni, "avx2": self._signed, "plain": self.plainly}
        return ways[self.machine.dots](total, codes, given)

    def widened(self, total: str, narrow: str) -> str:
        """Return the int32 total with what was summed in int16."""
        return self.code.let(f"add {self.sums} {total}, {self._folded(narrow)}")

    def _pairs(self, total: str, codes: str, given: str) -> str:
        half = f"<{2 * self.machine.lanes} x i16>"
        found = self.code.call(half, "llvm.x86.avx2.pmadd.ub.sw", [self.bytes] * 2, [codes, given])
        return found if not total else self.code.let(f"add {half} {total}, {found}")

    def _folded(self, narrow: str) -> str:
        half, lanes = f"<{2 * self.machine.lanes} x i16>", self.machine.lanes
        return self.code.call(self.sums, "llvm.x86.avx2.pmadd.wd", [half] * 2, [narrow, same(2 * lanes, "i16", 1)])

    def _vnni(self, total: str, codes: str, given: str) -> str:
        size = 8 * self.machine.width
        fours = [self.code.let(f"bitcast {self.bytes} {one} to {self.sums}") for one in (codes, given)]
        return self.code.call(self.sums, f"llvm.x86.avx512.vpdpbusd.{size}", [self.sums] * 3, [total, *fours])

    def _signed(self, total: str, codes: str, given: str) -> str:
        size = self.code.call(self.bytes, f"llvm.abs.v{self.machine.width}i8", [self.bytes, "i1"], [codes, "false"])
        signed = self.code.call(self.bytes, "llvm.x86.avx2.psign.b", [self.bytes] * 2, [given, codes])
        return self.widened(total, self._pairs("", size, signed))

    def plainly(self, total: str, codes: str, given: str) -> str:
        """Return the total after a step, in operations that every processor has."""
        wide = f"<{self.machine.width} x i32>"
        left = self.code.let(f"zext {self.bytes} {codes} to {wide}")
        right = self.code.let(f"sext {self.bytes} {given} to {wide}")
        product = self.code.let(f"mul {wide} {left}, {right}")
        for first in range(4):
            picked = ", ".join(f"i32 {first + 4 * lane}" for lane in range(self.machine.lanes))
            mask = f"<{self.machine.lanes} x i32> <{picked}>"
            part = self.code.let(f"shufflevector {wide} {product}, {wide} poison, {mask}")
            total = self.code.let(f"add {self.sums} {total}, {part}")
        return total
