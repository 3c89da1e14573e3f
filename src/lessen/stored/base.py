"""What every compact module provides: a registered name, a JSON configuration, exact buffers and a dense view."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

STORED: dict[str, type[StoredModule]] = {}
"""Registered classes by name; an artifact may name only these."""


class StoredModule(nn.Module):
    """A compact module: its state is its parameters and buffers, its shape is `config()`.

    `cls.from_config(module.config())` must build an empty twin whose `state_dict` has the same keys, shapes and
    dtypes, so that loading is: build the twin, copy the tensors.
    """

    kind: ClassVar[str]

    def config(self) -> dict[str, Any]:
        """Return JSON values from which `from_config` builds an empty twin."""
        raise NotImplementedError(f"{type(self).__name__}.config")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> StoredModule:
        """Build an empty twin. Raises ValueError or TypeError for values that make no sense."""
        return cls(**config)

    def dequantise(self) -> Tensor:
        """Return the dense weight that this module stands for, float32."""
        raise NotImplementedError(f"{type(self).__name__}.dequantise")

    def opaque_macs(self, *inputs: Any) -> int:  # noqa: ARG002 - a subclass reads their shapes
        """Return multiply-adds of one forward that torch's flop counter cannot see (packed operators)."""
        return 0

    def packed_bytes(self) -> int:
        """Return bytes held outside parameters and buffers, such as an operator's packed copy of the weight."""
        return 0


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
