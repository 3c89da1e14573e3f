"""A kernel of its own: named arguments in an array of int64, and the state that kernels of one run share."""

from __future__ import annotations

from collections.abc import Sequence

from lessen.stored.kernels.assembly import Assembly

STATE = ("alone", "rows", "past")
"""Numbers of a run: whether one thread runs it, rows of this pass, rows of the passes before it."""


class Function:
    """Lines of `kernel(ptr arguments)`. Argument `x` is i64 `%x` and pointer `%xptr`; the first is `state`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.code = Assembly()
        self._entry = []
        for number, name in enumerate(names):
            self._entry += [
                f"  %{name}place = getelementptr i64, ptr %arguments, i64 {number}",
                f"  %{name} = load i64, ptr %{name}place",
                f"  %{name}ptr = inttoptr i64 %{name} to ptr",
            ]

    def state(self, name: str) -> str:
        """Return a number of the run."""
        return self.code.get("i64", self.code.place("%stateptr", str(STATE.index(name)), "i64"))

    def text(self) -> str:
        """Return the assembly."""
        code = self.code
        head = [*code.declared.values(), *code.constants, "define void @kernel(ptr %arguments) {"]
        return "\n".join([*head, *self._entry, *code.variables, *code.lines, "  ret void", "}"])


def share(function: Function, count: str) -> tuple[str, str]:
    """Return this thread's part of `count` things: the first and the one after the last."""
    code = function.code
    alone = code.compare("ne", function.state("alone"), 0)
    part = code.choose(alone, "0", code.wide(code.call("i32", "omp_get_thread_num", [], []), "i32"))
    parts = code.choose(alone, "1", code.wide(code.call("i32", "omp_get_num_threads", [], []), "i32"))
    first, last = (
        code.let(f"sdiv i64 {code.multiply(count, number)}, {parts}") for number in (part, code.add(part, 1))
    )
    return first, last
