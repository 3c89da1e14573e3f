"""Tensors whose neighbours in memory cannot be touched: a read before or behind one ends the process."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE


class Guards:
    """Hands out copies of tensors that begin or end at a page that nobody may read.

    Rooms are used again after `reset`, so that thousands of copies cost no system call.
    """

    def __init__(self) -> None:
        self.rooms: dict[int, list[tuple[mmap.mmap, int]]] = {}
        self.used: dict[int, int] = {}

    def reset(self) -> None:
        """Let every room be used again; tensors handed out before must be gone."""
        self.used = {}

    def copy(self, tensor: Tensor, at_end: bool) -> Tensor:
        """Return a contiguous copy that ends (or begins) at a guard page."""
        size = tensor.numel() * tensor.element_size()
        pages = max(1, -(-size // PAGE))
        block, start = self._room(pages)
        if at_end:
            start += pages * PAGE - size
        made = torch.frombuffer(block, dtype=tensor.dtype, count=max(1, tensor.numel()), offset=start if size else 0)
        made = made[: tensor.numel()].view(tensor.shape)
        made.copy_(tensor.detach())
        return made

    def _room(self, pages: int) -> tuple[mmap.mmap, int]:
        rooms, number = self.rooms.setdefault(pages, []), self.used.get(pages, 0)
        self.used[pages] = number + 1
        if number == len(rooms):
            block = mmap.mmap(-1, (pages + 2) * PAGE)
            address = ctypes.addressof(ctypes.c_char.from_buffer(block))
            for guard in (address, address + (pages + 1) * PAGE):
                if _libc.mprotect(guard, PAGE, 0):
                    raise OSError(ctypes.get_errno(), "mprotect")
            rooms.append((block, PAGE))
        return rooms[number]
