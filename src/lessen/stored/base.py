"""What every compact module provides: a registered name, a JSON configuration, exact buffers and a dense view."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from lessen.errors import InputError


class NoDenseWeight(InputError, AttributeError):
    """A forward reads the weight of a layer that is stored compactly; `hasattr` sees an absent attribute, as before."""


STORED: dict[str, type[StoredModule]] = {}
"""Registered classes by name; an artifact may name only these."""


class StoredModule(nn.Module):
    """A compact module: its state is its parameters and buffers, its shape is `config()`.

    `cls.from_config(module.config())` must build an empty twin whose `state_dict` has the same keys, shapes and
    dtypes, so that loading is: build the twin, copy the tensors.
    """

    kind: ClassVar[str]
    place: str = ""
    """Path of the layer that it took the place of, for messages."""

    def __getattr__(self, name: str) -> Any:
        """Find tensors and children as torch does. Raises NoDenseWeight for a `weight` that only dense layers have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name != "weight":
                raise
            place = self.place or "PATH"
            raise NoDenseWeight(
                f"{self.place or 'a layer'} is a compact {type(self).__name__} without a dense weight, and the model "
                f"reads `weight` in place of calling it; leave it out with skip={place!r}, or call it in the forward"
            ) from None

    def config(self) -> dict[str, Any]:
        """Return JSON values from which `from_config` builds an empty twin."""
        raise NotImplementedError(f"{type(self).__name__}.config")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> StoredModule:
        """Build an empty twin. Raises ValueError or TypeError for values that make no sense."""
        return cls(**config)

    def check(self) -> None:
        """Refuse tensors and children that do not fit the configuration, so that no lookup can read beyond them.

        An artifact runs this after its tensors are in and before anything is looked up.

        Raises:
            ValueError, TypeError: which tensor or child, what it holds, what it may hold.
        """
        twin = self.twin()
        same_form(self, twin)
        one_type(self, twin)
        self.check_values()

    def twin(self) -> StoredModule:
        """Return the empty module, without memory, whose tensors say what those of this one must be."""
        with torch.device("meta"):
            return type(self).from_config(self.config())

    def check_values(self) -> None:
        """Refuse tensors whose values point outside others; their shapes fit already. Raises ValueError."""

    def dequantise(self) -> Tensor:
        """Return the dense weight that this module stands for, float32."""
        raise NotImplementedError(f"{type(self).__name__}.dequantise")

    def opaque_macs(self, *inputs: Any) -> int:  # noqa: ARG002 - a subclass reads their shapes
        """Return multiply-adds of one forward that torch's flop counter cannot see (packed operators)."""
        return 0

    def storage_only(self) -> bool:
        """Tell whether no kernel reads this form here, so that a forward decodes what it multiplies with."""
        return False

    def hold(self, dtype: torch.dtype | None) -> None:
        """Keep what a forward decodes, in a type, from now on (`stored.serving`); None: let it go."""

    def packed_bytes(self) -> int:
        """Return bytes held outside parameters and buffers, such as an operator's packed copy of the weight."""
        return 0


def same_form(module: nn.Module, twin: nn.Module, path: str = "") -> None:
    """Refuse a module that does not hold what its empty `twin` holds: tensors of equal shape and type, and children.

    A child may be stored in another form of equal size. Stored children are checked whole.

    Raises:
        ValueError: which tensor or child differs, and how.
    """
    for kind in ("_parameters", "_buffers"):
        own, expected = getattr(module, kind), getattr(twin, kind)
        for name in {**expected, **own}:
            _same_tensor(f"{path}{name}", own.get(name), expected.get(name))
    if set(module._modules) != set(twin._modules):
        raise ValueError(f"{path or 'the module'} holds {sorted(module._modules)}, not {sorted(twin._modules)}")
    for name, child in module._modules.items():
        other = twin._modules[name]
        if child is None or other is None:
            raise ValueError(f"{path}{name} is missing")
        if isinstance(child, StoredModule):
            if type(child) is not type(other) and _size(child) != _size(other):
                raise ValueError(f"{path}{name} has {_size(child)}; its parent needs {_size(other)}")
            child.check()
        elif isinstance(child, type(other)) and _size(child) == _size(other) and not isinstance(other, StoredModule):
            same_form(child, other, f"{path}{name}.")
        else:
            found, needed = (f"{type(one).__name__} ({_size(one)})" for one in (child, other))
            raise ValueError(f"{path}{name} is a {found}; its parent needs a {needed}")


def one_type(module: nn.Module, twin: nn.Module) -> None:
    """Refuse floats that have neither the types of the empty `twin` nor all one type, as `.half()` makes them.

    Stored children are checked by themselves.

    Raises:
        ValueError: which tensor is of a type of its own.
    """
    inside = {inner for child in module.children() if isinstance(child, StoredModule) for inner in child.modules()}
    expected = dict(_floats(twin, set()))
    found = {name: tensor for name, tensor in _floats(module, inside) if name in expected}
    changed = [name for name, tensor in found.items() if tensor.dtype != expected[name].dtype]
    if changed and len({tensor.dtype for tensor in found.values()}) > 1:
        raise ValueError(f"{changed[0]} is {found[changed[0]].dtype}, other tensors of the module are not")


def _floats(module: nn.Module, inside: set[nn.Module]) -> list[tuple[str, Tensor]]:
    return [
        (f"{path}.{name}" if path else name, tensor)
        for path, owner in module.named_modules()
        if owner not in inside
        for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False))
        if tensor.is_floating_point()
    ]


def _same_tensor(name: str, found: Tensor | None, expected: Tensor | None) -> None:
    if found is None or expected is None:
        if found is not expected:
            raise ValueError(f"{name} is {'missing' if found is None else 'not expected'}")
        return
    if found.shape != expected.shape:
        raise ValueError(f"{name} has shape {list(found.shape)}, the configuration says {list(expected.shape)}")
    if found.dtype != expected.dtype:
        remedy = "; convert a model before it is compressed" if found.is_floating_point() else ""
        raise ValueError(f"{name} is {found.dtype}, the configuration says {expected.dtype}{remedy}")
    if found.layout != torch.strided or found.is_quantized:
        raise ValueError(f"{name} is not a plain dense tensor")


class StoredPatch(StoredModule):
    """What changes how a model runs without replacing a module, such as a reduction of its tokens."""

    role: ClassVar[str | None] = None
    """Role of the file that holds its tensors in an artifact; None puts them among the weights."""
    only_notes: ClassVar[bool] = False
    """Whether it changes nothing that a model computes, so that every format can leave it out."""
    not_exported: ClassVar[str] = ""
    """Why no other format can carry it; empty where an export can try."""

    def attach(self, model: nn.Module) -> Any:
        """Put the patch into `model` and make it a child of the model, so that an artifact records it."""
        raise NotImplementedError(f"{type(self).__name__}.attach")


SIZES = ("num_embeddings", "embedding_dim", "mode", "in_features", "out_features", "num_features")


def _size(module: nn.Module) -> str:
    """Return what a parent relies on: rows, width and pooling of a table, or the features of a layer."""
    known = {name: getattr(module, name, None) for name in SIZES}
    return ", ".join(f"{name} {value}" for name, value in known.items() if value is not None) or "size unknown"


Kind = TypeVar("Kind", bound=type[StoredModule])


def stored(cls: Kind) -> Kind:
    """Register a stored class under its `kind`; refuses a name that is taken."""
    if cls.kind in STORED:
        raise ValueError(f"stored class {cls.kind!r} is already registered by {STORED[cls.kind].__qualname__}")
    STORED[cls.kind] = cls
    return cls


def load_builtin_kinds() -> dict[str, type[StoredModule]]:
    """Register every stored class and return the registry: those of this package, then the entry points.

    A room that stores forms of its own (`tokens`), or a third party, names its module under `lessen.stored`.
    """
    import lessen.stored as package

    for info in pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}."):
        importlib.import_module(info.name)
    for point in entry_points(group="lessen.stored"):
        point.load()
    return STORED
