"""Layers that a model reaches beside its module tree: through a plain dict, list, object, partial, closure or hook.

Such a layer is read by the forward and is part of no state: what replaces its twin in the tree would never be used.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from lessen.errors import InputError

PATCH = "_lessen_"
"""How attributes of a model begin that hold our own patches."""
_LEAVES = (str, bytes, int, float, complex, bool, type(None), type, Tensor)


def check_unreached(model: nn.Module, gone: Collection[nn.Module], paths: Mapping[nn.Module, str], what: str) -> None:
    """Refuse a model that still reaches a layer which its module tree does not hold.

    Args:
        gone: layers that must not be reachable: replaced ones, and those of the model that this one is a copy of.
        paths: how those layers are called.
        what: what was done, for the message.

    Raises:
        InputError: the layer, where it is kept, and what to do.
    """
    if not gone:
        return
    for module, where in reached(model, gone):
        if module in gone:
            if PATCH in where:
                raise InputError(
                    f"{what} replaces {paths.get(module, type(module).__name__)!r}, which the patch of an earlier step "
                    "reads; put steps that change weights before those that change how a model runs"
                )
            raise InputError(
                f"{what}: {where} keeps the layer {paths.get(module, type(module).__name__)!r} outside of the module "
                "tree, so that its replacement would never be read; keep layers as attributes, in nn.ModuleDict or in "
                "nn.ModuleList"
            )


def reached(model: nn.Module, also: Collection[nn.Module] = ()) -> Iterator[tuple[nn.Module, str]]:
    """Yield each layer that plain Python objects of `model` lead to and its tree does not hold, and from where.

    Args:
        also: layers to look for though the tree holds them, such as one that a compact layer wraps.
    """
    own = {id(module) for module in model.modules()} - {id(module) for module in also}
    seen = set(own)
    for path, module in model.named_modules():
        waiting = [(value, f"{path or type(model).__name__}: {name}") for name, value in _held(module)]
        while waiting:
            value, where = waiting.pop()
            if isinstance(value, _LEAVES) or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                yield value, where
                waiting += [(child, where) for child in value.children()]
                waiting += [(held, where) for _, held in _held(value)]
            else:
                waiting += [(inner, where) for inner in _inside(value)]


def _held(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the plain attributes and the hooks of a module; its parameters, buffers and children are its tree."""
    for name, value in vars(module).items():
        if name not in ("_parameters", "_buffers", "_modules"):
            yield name, value


def _inside(value: Any) -> list[Any]:
    """Return what a plain object holds: elements, attributes, what a function closes over and is bound to."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *vars(value).values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    held = getattr(value, "__dict__", None)
    return list(held.values()) if isinstance(held, dict) and type(value).__module__.split(".")[0] != "torch" else []


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is not bound yet
        return False
