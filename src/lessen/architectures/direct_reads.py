"""Which layers' weights a forward reads by itself, `self.items.weight`, so that a compact layer in their place fails.

Seen in the source of `forward` and of the methods that it calls, before anything is replaced. A read that no source
shows (an alias, a loop) is met later: a stored layer says that it has no dense weight.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from types import FunctionType
from typing import Any

from torch import nn

Chain = tuple[str, ...]
"""Names from the module to the layer; `*` stands for any element of a list."""
ANY = "*"


def direct_reads(model: nn.Module) -> dict[nn.Module, str]:
    """Return each module whose `weight` some other module's forward reads, with the name of that module's class."""
    found: dict[nn.Module, str] = {}
    for reader in model.modules():
        if type(reader).__module__.startswith("torch."):
            continue
        for chain in _chains(type(reader)):  # type: ignore[arg-type]
            for layer in _resolved(reader, chain):
                found.setdefault(layer, type(reader).__name__)
    return found


def _resolved(module: Any, chain: Chain) -> Iterator[nn.Module]:
    if not chain:
        yield module
        return
    name, rest = chain[0], chain[1:]
    children = module.children() if name == ANY else [getattr(module, name, None)]
    for child in children:
        if isinstance(child, nn.Module):
            yield from _resolved(child, rest)


@lru_cache(maxsize=4096)
def _chains(cls: type) -> frozenset[Chain]:
    """Return the chains that end in `.weight` in the forward of a class and in its methods that forward calls."""
    found: set[Chain] = set()
    waiting, seen = ["forward"], set()
    while waiting:
        name = waiting.pop()
        function = inspect.unwrap(getattr(cls, name, None) or _nothing)
        if name in seen or not isinstance(function, FunctionType) or function.__module__.startswith("torch."):
            continue
        seen.add(name)
        tree, own = _parsed(function)
        if tree is None:
            continue
        for node in ast.walk(tree):
            chain = _chain(node, own)
            if chain and chain[-1] == "weight" and len(chain) > 1:
                found.add(chain[:-1])
            elif isinstance(node, ast.Call) and (called := _chain(node.func, own)) and len(called) == 1:
                waiting.append(called[0])
    return frozenset(found)


def _nothing() -> None:
    """Stand for a method that a class lacks."""


def _parsed(function: FunctionType) -> tuple[ast.AST | None, str]:
    """Return the syntax tree of a function and the name of its first argument; None where there is no source."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function))), names[0] if names else ""
    except (OSError, TypeError, SyntaxError, IndentationError):
        return None, ""


def _chain(node: ast.AST, own: str) -> Chain | None:
    """Return the names in `self.a.b[0].c`, or None for anything that does not start at `self`."""
    if isinstance(node, ast.Attribute):
        before = _chain(node.value, own)
        return None if before is None else (*before, node.attr)
    if isinstance(node, ast.Subscript):
        before = _chain(node.value, own)
        return None if not before else (*before, ANY)
    return () if isinstance(node, ast.Name) and node.id == own else None
