"""The place where a kernel finds the row of an id: each kind of source writes the lines that read it.

The rows themselves are in `rows`; here are what every source must tell and the sources that hold others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lessen.stored.kernels.assembly import Assembly

Columns = tuple[int, int]
"""First column and number of columns of one vector."""
Upcoming = Callable[[int], str]
"""Gives the id that is looked up so many strides later."""
WIDEST = 64
"""Columns that are summed in registers at a time."""


class Source:
    """A tree of tensors and constants. `key` is all that its lines depend on, `values` what they are given each call.

    Values are addresses of tensors and i64 numbers; `at` is the prefix of their registers.
    """

    depth = 1
    """Loads that depend on one another before the row is known."""

    @property
    def bytes_read(self) -> int:
        """Bytes that a row takes in memory."""
        raise NotImplementedError

    def tensors(self) -> list[Tensor]:
        """Return every tensor that the lines read; all must be dense, on the CPU and without gradient."""
        raise NotImplementedError

    def values(self, at: str) -> dict[str, int]:
        """Return the values of the registers that the lines use."""
        raise NotImplementedError

    def key(self) -> tuple[Any, ...]:
        """Return all that the lines depend on."""
        raise NotImplementedError

    def sound(self) -> bool:
        """Tell whether all tensors have the types and sizes that the lines read."""
        floating = (tensor.dtype for tensor in self.tensors() if tensor.is_floating_point())
        return all(dtype == torch.float32 for dtype in floating) and self.sized()

    def sized(self) -> bool:
        """Tell whether the tensors of this source are as large as one another and its constants make the lines expect.

        Indices that come from data are checked by the lines; what the lines take for granted is checked here.
        """
        raise NotImplementedError

    def blocks(self, dim: int) -> list[list[Columns]]:
        """Return the vectors of a row that are summed together, block by block."""
        return [[(first, min(WIDEST, dim - first))] for first in range(0, dim, WIDEST)]

    def accepts(self, columns: list[Columns]) -> bool:
        """Tell whether `read` can give these vectors; it can give those of `blocks`."""
        raise NotImplementedError

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return the columns of row `number` (i64, unchecked), a vector of float32 each."""
        raise NotImplementedError

    def prefetch(self, code: Assembly, at: str, upcoming: Upcoming) -> None:
        """Ask for what a row read soon will touch; the ids may be any numbers."""
        raise NotImplementedError


class Node(Source):
    """Tensors, inner sources and constants under names of their own.

    The registers of tensor `t` are `t` (its address) and `tn` (its elements); those of part `p` start with `p_`.
    """

    def __init__(self, tensors: dict[str, Tensor], parts: dict[str, Source], constants: tuple[Any, ...]) -> None:
        self.own, self.parts, self.constants = tensors, parts, constants

    @property
    def depth(self) -> int:  # type: ignore[override]
        """That of the deepest part."""
        return max((part.depth for part in self.parts.values()), default=1)

    @property
    def bytes_read(self) -> int:
        """Bytes of the parts' rows, and a line for each tensor."""
        return sum(part.bytes_read for part in self.parts.values()) + 64 * len(self.own)

    def tensors(self) -> list[Tensor]:
        """Return the tensors of this node and of its parts."""
        return [*self.own.values(), *(tensor for part in self.parts.values() for tensor in part.tensors())]

    def values(self, at: str) -> dict[str, int]:
        """Return addresses and elements of all tensors."""
        found = {f"{at}{name}": tensor.data_ptr() for name, tensor in self.own.items()}
        found |= {f"{at}{name}n": tensor.numel() for name, tensor in self.own.items()}
        for name, part in self.parts.items():
            found |= part.values(f"{at}{name}_")
        return found

    def key(self) -> tuple[Any, ...]:
        """Return the kind, the constants and the keys of the parts."""
        return (type(self).__name__, self.constants, *(part.key() for part in self.parts.values()))

    def sound(self) -> bool:
        """Tell whether all tensors have the types and sizes that the lines read."""
        own = all(not tensor.is_floating_point() or tensor.dtype == torch.float32 for tensor in self.own.values())
        return own and self.sized() and all(part.sound() for part in self.parts.values())

    def blocks(self, dim: int) -> list[list[Columns]]:
        """Return those of the first part whose vectors all parts can give."""
        found = [part.blocks(dim) for part in self.parts.values()] or [super().blocks(dim)]
        return next((blocks for blocks in found if all(map(self.accepts, blocks))), found[0])

    def accepts(self, columns: list[Columns]) -> bool:
        """Tell whether every part can give these vectors."""
        return all(part.accepts(columns) for part in self.parts.values())


def is_of(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Tell whether a tensor has this type and shape."""
    return tensor.dtype == dtype and tuple(tensor.shape) == shape


def reaches(tensor: Tensor, dtype: torch.dtype, elements: int) -> bool:
    """Tell whether a tensor of this type has at least so many elements."""
    return tensor.dtype == dtype and tensor.numel() >= elements


class Mapped(Node):
    """Row `position[id]` of another source; `position` int32 [ids]."""

    def __init__(self, position: Tensor, inner: Source) -> None:
        super().__init__({"map": position}, {"inner": inner}, ())
        self.inner = inner

    def sized(self) -> bool:
        """Tell whether the map holds int32; its entries are checked by the inner source."""
        return self.own["map"].dtype == torch.int32

    @property
    def depth(self) -> int:  # type: ignore[override]
        """One load more than the inner source."""
        return super().depth + 1

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return the columns of the row that the map gives."""
        place = self._row(code, at, code.below(number, f"%{at}mapn"))
        return self.inner.read(code, f"{at}inner_", place, columns)

    def prefetch(self, code: Assembly, at: str, upcoming: Upcoming) -> None:
        """Ask for the map's entry first, for the row later."""
        base = code.let(f"inttoptr i64 %{at}map to ptr")
        code.prefetch(code.place(base, upcoming(self.depth), "i32"), 4, aligned=True)

        def mapped(strides: int) -> str:
            number = upcoming(strides)
            inside = code.compare("ult", number, f"%{at}mapn")
            return self._row(code, at, code.choose(inside, number, 0))

        self.inner.prefetch(code, f"{at}inner_", mapped)

    def _row(self, code: Assembly, at: str, number: str) -> str:
        base = code.let(f"inttoptr i64 %{at}map to ptr")
        return code.wide(code.get("i32", code.place(base, number, "i32")), "i32", "sext")
