"""Compiled lookups: the rows of a stored table read, decoded and summed in one pass, made for its layout and width.

Large lookups on Linux CPUs take this way with the extra `kernels` (llvmlite); every other call takes torch's operators
and gives the same rows. Nothing is compiled or imported before the first large lookup.

ids, offsets, weights --> pooling (bags over threads) --> source (rows of one layout) --> float32 [bags, dim]
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored.kernels import machine, pooling
from lessen.stored.kernels.sources import Source

SMALLEST = 1024
"""Ids from which a lookup takes a kernel."""
SHARE = 2048
"""Ids that are worth a thread of their own."""
WIDEST_ROW = 1024
_known: dict[tuple[Any, ...], int] = {}


def look_up(
    source: Source,
    dim: int,
    ids: Tensor,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    last: bool = False,
    mean: bool = False,
    padding: int | None = None,
) -> Tensor | None:
    """Return bags of rows, float32 [bags, dim], or None where torch's operators must answer.

    Args:
        ids: int32 or int64, [bags, length], or flat [n] with offsets, or flat without (one row an id).
        offsets: the start of each bag, of the same type; with `last` their last is the end of the last bag.
        weights: float32, of the shape of ids, or None.
        mean: divide by the ids of a bag; padding: an id that counts as nothing.

    None is also the answer when an id, an offset or a stored index lies outside its table: nothing out of bounds is
    read, and torch's operators then say what is wrong.
    """
    if not fits(source, ids, offsets, weights, dim):
        return None
    ids = ids.contiguous()
    starts = 0 if offsets is None else len(offsets)
    length = 1 if ids.dim() == 1 else ids.shape[1]
    bags = starts - last if offsets is not None else len(ids)
    if bags < 1 or (offsets is not None and int(offsets[0]) != 0):
        return None
    kind = pooling.Pooling(
        dim,
        "i32" if ids.dtype == torch.int32 else "i64",
        offsets is not None,
        offsets is None and length == 1 and weights is None,
        weights is not None,
        mean,
        padding is not None,
    )
    offsets = None if offsets is None else offsets.contiguous()
    weights = None if weights is None else weights.contiguous()
    out = torch.empty(bags, dim, dtype=torch.float32, device="cpu")
    threads = machine.threads_for(ids.numel() // SHARE)
    head = [
        ids.data_ptr(),
        0 if offsets is None else offsets.data_ptr(),
        starts,
        ids.numel(),
        bags,
        length,
        0 if weights is None else weights.data_ptr(),
        out.data_ptr(),
        -1 if padding is None else padding,
        threads == 1,
        0,
    ]
    values = [*head, *source.values("s").values()]
    arguments = (ctypes.c_int64 * len(values))(*values)
    machine.run(_kernel(source, kind), arguments, threads)
    return None if arguments[pooling.FAULT] else out


def _kernel(source: Source, kind: pooling.Pooling) -> int:
    """Return the address of the kernel for a layout, compiled when first asked for."""
    key = (kind, *source.key())
    if key not in _known:
        _known[key] = machine.compiled(pooling.write(source, kind))
    return _known[key]


def worthwhile(ids: Tensor) -> bool:
    """Tell whether kernels can be made here, and a lookup is large, on the CPU, and not compiled or traced by torch."""
    return not recorded() and type(ids) is Tensor and ids.numel() >= SMALLEST and ids.is_cpu and machine.available()


def fits(source: Source, ids: Tensor, offsets: Tensor | None, weights: Tensor | None, dim: int) -> bool:
    """Tell whether a kernel may answer: a large lookup, plain dense tensors on the CPU, nobody watching or training."""
    if not worthwhile(ids) or dim > WIDEST_ROW or watched():
        return False
    given = [tensor for tensor in (ids, offsets, weights) if tensor is not None]
    integers = ids.dtype in (torch.int32, torch.int64) and (offsets is None or offsets.dtype == ids.dtype)
    right = weights is None or (weights.dtype == torch.float32 and weights.shape == ids.shape)
    grad = torch.is_grad_enabled()
    return (
        integers
        and right
        and source.sound()
        and all(map(source.accepts, source.blocks(dim)))
        and all(plain(tensor, grad) for tensor in (*given, *source.tensors()))
        and all(tensor.is_contiguous() and tensor.numel() > 0 for tensor in source.tensors())
    )


def plain(tensor: Tensor, grad: bool) -> bool:
    """Tell whether a kernel may read a tensor: dense, on the CPU, of no subclass, and without gradient where `grad`."""
    known = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    return known and tensor.is_cpu and tensor.layout == torch.strided and not (grad and tensor.requires_grad)


def recorded() -> bool:
    """Tell whether torch compiles or traces what runs."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def watched() -> bool:
    """Tell whether something records or transforms torch's operators, which would not see a kernel."""
    return (
        torch.compiler.is_exporting()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
