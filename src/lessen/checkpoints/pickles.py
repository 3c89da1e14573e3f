"""Reads a pickle as data: what it names and in which order, never what it would build.

    b"...ctorch._utils _rebuild_tensor_v2 ... R"  -->  Built(Named("torch._utils._rebuild_tensor_v2"), (...))

A pickle is a program for a machine with a stack. This is that machine with every instruction that would import or call
something replaced by one that writes down its operands, so that reading runs no code and builds no object of the file,
whatever it holds.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lessen.errors import ArtifactError


@dataclass(eq=False, frozen=True)
class Named:
    """A class or function the pickle asks for, by its dotted name."""

    name: str


@dataclass(eq=False, frozen=True)
class Persistent:
    """An object that lies outside the pickle; torch names storages so."""

    key: Any


@dataclass(eq=False)
class Built:
    """An object the pickle would build: what it calls, with what, and what is put into it afterwards."""

    function: Any
    arguments: Any = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The dotted name of what is called; empty for something that is not a plain name."""
        return self.function.name if isinstance(self.function, Named) else ""


def read_pickle(data: bytes, where: str) -> tuple[Any, list[str]]:
    """Return the tree of a pickle and the dotted names it asks for, in order of first use.

    Dicts, lists, tuples, numbers, strings and bytes are themselves; sets are `Built`; the rest is `Named`, `Built` or
    `Persistent`. Parts that the pickle refers to twice are the same object.

    Raises:
        ArtifactError: no complete pickle, or one of a kind that needs what lies outside of it.
    """
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(data):
            machine.run(operation.name, argument)
    except Exception as error:  # whatever is wrong with the bytes, they are no pickle
        raise ArtifactError(
            f"{where} is damaged: its index cannot be read ({type(error).__name__}: {error})"
        ) from error
    return machine.result, list(machine.names)


def entries(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (key, value) of a dict, or of an object that behaves like one, such as an OrderedDict or a namespace."""
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, Built):
        yield from node.pairs
        for state in node.state if isinstance(node.state, tuple) else (node.state,):
            if isinstance(state, dict):
                yield from state.items()


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[str, None] = {}
        self.result: Any = None

    def run(self, operation: str, argument: Any) -> None:
        if operation in _PUSHES:
            self.stack.append(argument)
        elif operation in _CONSTANTS:
            self.stack.append(_CONSTANTS[operation]())
        elif operation in _TUPLES:
            count = _TUPLES[operation]
            self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]
        else:
            _DEEDS[operation](self, argument)

    # -- the stack and the memo ----------------------------------------------------------------------------------
    def ignore(self, _: Any) -> None:
        pass

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def pop(self, _: Any) -> None:
        self.stack.pop()

    def pop_mark(self, _: Any) -> None:
        self.since_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def since_mark(self) -> list[Any]:
        at = self.marks.pop()
        taken = self.stack[at:]
        del self.stack[at:]
        return taken

    def name(self, dotted: str) -> Named:
        self.names[dotted] = None
        return Named(dotted)

    def put(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    def get(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    # -- filling containers --------------------------------------------------------------------------------------
    def append(self, _: Any) -> None:
        value = self.stack.pop()
        self.extend([value])

    def append_marked(self, _: Any) -> None:
        self.extend(self.since_mark())

    def set_marked(self, _: Any) -> None:
        self.fill(self.since_mark())

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        (target if isinstance(target, list) else target.items).extend(values)

    def fill(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        if isinstance(target, dict):
            target.update(pairs)
        else:
            target.pairs.extend(pairs)

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.fill([key, value])

    def whole_list(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append(values)

    def whole_tuple(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append(tuple(values))

    def whole_set(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append(Built(self.name("builtins.frozenset"), (values,)))

    def whole_dict(self, _: Any) -> None:
        flat = self.since_mark()
        self.stack.append({})
        self.fill(flat)

    # -- what would be calls -------------------------------------------------------------------------------------
    def look_up(self, argument: str) -> None:
        self.stack.append(self.name(".".join(argument.split(" ", 1))))

    def look_up_stack(self, _: Any) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.name(f"{module}.{attribute}"))

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(Built(function, arguments))

    def call_with_keywords(self, _: Any) -> None:
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(Built(function, arguments, state=keywords))

    def call_marked(self, _: Any) -> None:
        function, *arguments = self.since_mark()
        self.stack.append(Built(function, tuple(arguments)))

    def call_named(self, argument: str) -> None:
        arguments = tuple(self.since_mark())
        self.stack.append(Built(self.name(".".join(argument.split(" ", 1))), arguments))

    def set_state(self, _: Any) -> None:
        state = self.stack.pop()
        self.stack[-1].state = state

    def outside(self, argument: str) -> None:
        self.stack.append(Persistent(argument))

    def outside_stack(self, _: Any) -> None:
        key = self.stack.pop()
        self.stack.append(Persistent(key))

    def stop(self, _: Any) -> None:
        self.result = self.stack.pop()


def _empty_set() -> Built:
    return Built(Named("builtins.set"))


_PUSHES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": _empty_set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_DEEDS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.ignore, "FRAME": _Machine.ignore, "STOP": _Machine.stop, "MARK": _Machine.mark,
    "POP": _Machine.pop, "POP_MARK": _Machine.pop_mark, "DUP": _Machine.duplicate,
    "PUT": _Machine.put, "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put, "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get, "BINGET": _Machine.get, "LONG_BINGET": _Machine.get,
    "APPEND": _Machine.append, "APPENDS": _Machine.append_marked, "ADDITEMS": _Machine.append_marked,
    "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_marked,
    "LIST": _Machine.whole_list, "TUPLE": _Machine.whole_tuple, "DICT": _Machine.whole_dict,
    "FROZENSET": _Machine.whole_set,
    "GLOBAL": _Machine.look_up, "STACK_GLOBAL": _Machine.look_up_stack,
    "REDUCE": _Machine.call, "NEWOBJ": _Machine.call, "NEWOBJ_EX": _Machine.call_with_keywords,
    "OBJ": _Machine.call_marked, "INST": _Machine.call_named, "BUILD": _Machine.set_state,
    "PERSID": _Machine.outside, "BINPERSID": _Machine.outside_stack,
}  # fmt: skip
"""What is missing refers to things outside the pickle (extension codes, buffers): such a file is refused."""
