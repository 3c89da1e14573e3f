"""A list of compiled steps that threads go through together, with a barrier after each."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from lessen.stored.kernels import machine
from lessen.stored.kernels.functions import Function
from lessen.stored.kernels.operands import numbers

_HEAD = ("state", "steps", "count")


@cache
def _runner() -> int:
    """Return the address of the kernel that goes through steps: pairs of a kernel's address and its arguments'."""
    function = Function(_HEAD)
    code = function.code
    together = code.compare("eq", function.state("alone"), 0)
    code.declared["GOMP_barrier"] = "declare void @GOMP_barrier()"
    with code.loop("0", "%count") as step:
        first = code.multiply(step, 2)
        kernel, arguments = (
            code.let(f"inttoptr i64 {code.get('i64', code.place('%stepsptr', code.add(first, part), 'i64'))} to ptr")
            for part in (0, 1)
        )
        code.do(f"call void {kernel}(ptr {arguments})")
        with code.when(together):
            code.do("call void @GOMP_barrier()")
    return machine.compiled(function.text(), as_written=True)


@cache
def kernel(text: str, as_written: bool = False) -> int:
    """Return the address of a kernel, compiled when first asked for."""
    return machine.compiled(text, as_written)


class Program:
    """Steps over one state. Arguments are int64; those of tensors are addresses, and the tensors must stay."""

    def __init__(self) -> None:
        self.state = numbers([1, 0, 0])
        self._steps: list[tuple[int, Any]] = []
        self._list: Any = None

    @property
    def at(self) -> int:
        """Address of the state, the first argument of every kernel."""
        return ctypes.addressof(self.state)

    def add(self, address: int, arguments: list[int]) -> Any:
        """Add a step; return its arguments as an array, which may be changed between runs."""
        made = numbers(arguments)
        self._steps.append((address, made))
        self._list = None
        return made

    def run(self, rows: int, threads: int) -> None:
        """Go through the steps with so many rows."""
        if self._list is None:
            self._list = numbers([one for step, given in self._steps for one in (step, ctypes.addressof(given))])
        self.state[0], self.state[1] = int(threads == 1), rows
        machine.run(_runner(), numbers([self.at, ctypes.addressof(self._list), len(self._steps)]), threads)
