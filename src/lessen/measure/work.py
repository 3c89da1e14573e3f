"""The work of one forward, operation by operation: what a model of this machine turns into seconds.

A forward is watched at torch's dispatcher; a layer that has a kernel of its own is told by what it is and by the sizes
of its call, for no operation of torch's is behind it then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lessen.stored.base import StoredModule
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.stored.linears.int8_linear import Int8Linear
from lessen.stored.linears.static_int8 import StaticInt8Linear
from lessen.stored.serving import served
from lessen.stored.tables.embedding import StoredEmbedding
from lessen.task import Judge
from lessen.train.device import device_of, to_device

LINEAR, BATCHED, ATTENTION, CONVOLUTION, GROUPED = "linear", "batched product", "attention", "convolution", "grouped"
LOOKUP, FUNCTION, NORM, PLAIN, VIEW = "lookup", "function", "norm", "plain", "view"
DECODED = "decoded layer"
"""What a layer without a kernel takes beside its operations: it looks whether what it holds decoded still stands."""
FUNCTIONS = (
    "gelu", "silu", "sigmoid", "tanh", "exp", "softmax", "log", "pow", "rsqrt", "erf", "hardswish", "mish",
    "softplus", "sin", "cos",
)  # fmt: skip
LOOKUPS = ("embedding", "index", "gather", "index_select")


@dataclass(frozen=True)
class Operation:
    """One call: a kind with sizes (rows, inputs, outputs), or with multiply-adds and bytes that go in and out."""

    kind: str
    sizes: tuple[int, ...] = ()
    macs: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Work:
    """All operations of a forward, equal ones counted, and the bytes of weights that it reads."""

    operations: dict[Operation, int]
    weight_bytes: int


def work_of(task: Judge, model: nn.Module) -> dict[str, Work]:
    """Return the work of each workload of `task` on its first item, by name; the model is not changed."""
    found = {}
    with served(model):
        for name, workload in task.workloads(1).items():
            item = to_device(workload.items[0], device_of(model))
            found[name] = Work(dict(watched(model.eval(), lambda item=item, call=workload.call: call(model, item))),
                               _read_bytes(model))  # fmt: skip
    return found


def watched(model: nn.Module, call: Any) -> Counter[Operation]:
    """Run `call` and return the operations that it made."""
    mode = _Watching()
    with torch.no_grad(), _told(model, mode), mode:
        call()
    return mode.found


def of_module(module: nn.Module, inputs: Sequence[Any]) -> Operation | None:
    """Return what a layer with a kernel of its own does in a call, or None where torch's operations tell it."""
    given = next((one for one in inputs if isinstance(one, Tensor)), None)
    if given is None or not isinstance(module, StoredModule):
        return None
    if isinstance(module, (GroupQuantizedLinear, Int8Linear, StaticInt8Linear)):
        if module.storage_only():
            return None
        rows = given.numel() // module.in_features
        return Operation(kernel_name(module), (rows, module.in_features, module.out_features))
    if isinstance(module, StoredEmbedding):
        return Operation(kernel_name(module), (given.numel(), module.embedding_dim))
    return None


def kernel_name(module: StoredModule) -> str:
    """Return what a kernel is called in a model of a machine: the form, and what in its knobs its speed hangs on."""
    parts = [str(getattr(module, name)) for name in ("bits", "activations") if hasattr(module, name)]
    return " ".join([module.kind, *parts])


def linear_name(dtype: torch.dtype) -> str:
    """Return what a dense product of a type is called."""
    return LINEAR if dtype == torch.float32 else f"{LINEAR} {str(dtype).removeprefix('torch.')}"


def _read_bytes(model: nn.Module) -> int:
    """Return the bytes of a model without its tables, of which a forward reads a few rows."""
    tables = {id(inner) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag, StoredEmbedding))
              for inner in m.modules()}  # fmt: skip
    return sum(
        tensor.numel() * tensor.element_size()
        for module in model.modules()
        if id(module) not in tables
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    )


class _Watching(TorchDispatchMode):
    """Counts operations; those inside a layer that told its own work are left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.found: Counter[Operation] = Counter()
        self.inside = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.inside:
            self.found[_operation(func, args, output)] += 1
        return output


@contextmanager
def _told(model: nn.Module, mode: _Watching) -> Iterator[None]:
    """Let layers with kernels of their own tell their work while a block runs."""

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found = None if mode.inside else of_module(module, inputs)
        if found is None and not mode.inside and isinstance(module, StoredModule) and module.storage_only():
            mode.found[Operation(DECODED)] += 1
        if found is not None:
            mode.found[found] += 1
        if mode.inside or found is not None:
            mode.inside += 1

    def after(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        mode.inside = max(0, mode.inside - 1)

    handles = []
    for module in model.modules():
        if isinstance(module, StoredModule):
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)


def _operation(func: Any, args: Any, output: Any) -> Operation:
    name = func.overloadpacket.__name__
    ins, outs = list(_tensors(args)), list(_tensors(output))
    moved = sum(tensor.nbytes for tensor in (*ins, *outs))
    if name in ("mm", "addmm"):
        left, right = ins[-2], ins[-1]
        return Operation(linear_name(left.dtype), (left.shape[0], left.shape[1], right.shape[1]))
    if name in ("bmm", "baddbmm"):
        left, right = ins[-2], ins[-1]
        return Operation(BATCHED, (), left.numel() * right.shape[2], moved)
    if "attention" in name:
        query, key, value = ins[:3]
        macs = query.numel() * key.shape[-2] + query.numel() // query.shape[-1] * key.shape[-2] * value.shape[-1]
        return Operation(ATTENTION, (), macs, moved)
    if "convolution" in name:
        weight = ins[1]
        kind = CONVOLUTION if weight.shape[1] == ins[0].shape[1] else GROUPED
        return Operation(kind, (), outs[0].numel() * weight[0].numel(), moved)
    if any(name.lstrip("_") == one or name.lstrip("_").startswith(f"{one}_bag") for one in LOOKUPS):
        read = sum(tensor.numel() for tensor in ins[1:2]) * ins[0].shape[-1] * ins[0].element_size()
        return Operation(LOOKUP, (), 0, max(read, outs[0].nbytes))
    storages = {tensor.untyped_storage().data_ptr() for tensor in ins}
    # a view shares memory with what it was made from; an operation in place does too, and is named with a final _
    if outs and not name.endswith("_") and all(one.untyped_storage().data_ptr() in storages for one in outs):
        return Operation(VIEW)
    if "norm" in name:
        return Operation(NORM, (), 0, moved)
    if any(one in name for one in FUNCTIONS):
        return Operation(FUNCTION, (), 0, moved)
    return Operation(PLAIN, (), 0, moved)
