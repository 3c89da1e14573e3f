"""What is done with a model that a user brings before anything else: copied, taken out of wrappers, looked at."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lessen.errors import InputError

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def private_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy in eval mode, out of `torch.compile` and data-parallel wrappers, which run it unchanged.

    A compiled model is measured as it is written: compile the compact one again. The caller's model is not changed.

    Raises:
        InputError: the model cannot be copied, or holds something else than plain tensors; names it.
    """
    check_state(model, "the model")
    try:
        made = copied(model)
    except Exception as error:  # whatever the user's attributes raise
        raise InputError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); keep what holds files, "
            "generators or locks outside of the module"
        ) from error
    return unwrapped(made).eval()


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy; tensors that a forward left in attributes are copied without the graph that made them.

    Such are the weights that `torch.nn.utils.weight_norm` and `spectral_norm` compute before each call.

    Args:
        memo: copies of parts that are made already, by the `id` of the part.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf and id(value) not in memo:
                memo[id(value)] = value.detach().clone()
    made = copy.deepcopy(model, memo)
    for parameter in made.parameters():
        if not parameter.is_leaf:  # torch copies scripted modules under the graph, and nothing could train the copy
            wanted = parameter.requires_grad
            parameter.detach_().requires_grad_(wanted)
    return made


def laid_open(model: nn.Module) -> nn.Module:
    """Return `model` without wrappers: itself where it has none, else a copy of its modules over the same tensors."""
    if all(_inner(module) is module for module in model.modules()):
        return model
    tensors = [*model.parameters(), *model.buffers()]
    return unwrapped(copied(model, {id(tensor): tensor for tensor in tensors}))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return `model` with every compiled or data-parallel wrapper in it replaced by what it wraps, in place."""
    model = _inner(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _inner(child) is not child:
                setattr(parent, name, _inner(child))
    return model


def _inner(module: Any) -> nn.Module:
    """Return what is inside of wrappers; compiled modules are told by their class name, for importing it takes long."""
    while True:
        if type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod
        elif isinstance(module, PARALLEL):
            module = module.module
        else:
            return module  # type: ignore[no-any-return]


def check_state(model: nn.Module, where: str) -> None:
    """Refuse a model whose state is not made of plain tensors with memory.

    Raises:
        InputError: the model is TorchScript; the first parameter, buffer or entry of the state that is lazy, sparse,
            on `meta`, quantised by torch, or no tensor at all; says what to do.
    """
    if isinstance(model, torch.jit.ScriptModule):  # a part that is one stays as it is, and the layers beside it go on
        raise InputError(
            f"the whole of {where} is TorchScript, in which no layer can be replaced; start from the Python module "
            "that it was made from"
        )
    for name, buffer in model.named_buffers():
        if not isinstance(buffer, Tensor):
            raise InputError(f"buffer {name} of {where} is a {type(buffer).__name__}; keep it as a plain attribute")
    for name, tensor in model.named_parameters():
        if is_lazy(tensor):
            raise InputError(f"{name} of {where} has no size yet (a lazy layer); run one batch through the model first")
    for name, value in model.state_dict().items():
        if isinstance(value, torch.dtype) or (isinstance(value, Tensor) and value.is_quantized):
            raise InputError(f"{name} of {where} is quantised by torch; start from the model as it was before")
        if isinstance(value, Tensor) and (value.is_nested or value.layout != torch.strided):
            kind = "nested" if value.is_nested else "sparse"
            raise InputError(f"{name} of {where} is {kind}; store it dense (value.to_dense()), or outside of the state")
        if isinstance(value, Tensor) and value.is_meta:
            raise InputError(f"{name} of {where} has no memory (device meta); load its weights first")
        if not isinstance(value, (Tensor, bytes)):
            raise InputError(
                f"{name} in the state of {where} is a {type(value).__name__}, not a tensor; make it a plain attribute"
            )
