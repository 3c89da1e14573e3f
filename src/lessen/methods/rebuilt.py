"""Whether a model is what its state dict says: built again and given the same state, it must answer alike.

What an artifact brings back is the state. Tensors in plain attributes, buffers that are not persistent, and layers in
plain lists or closures are none of it: the model that is loaded would compute with others, and nobody would see it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lessen.architectures.intake import private_copy
from lessen.architectures.reached import reached
from lessen.errors import InputError
from lessen.task import Task, main_tensor
from lessen.train.device import device_of, to_device

DRAWS = 0x5EED
"""Seed of the second model, so that what it draws is other, and of both answers."""


def check_rebuilt(model: nn.Module, task: Task) -> None:
    """Refuse a model of a user's own that computes with something that its state dict does not hold.

    The task builds its model once more. Where that is another architecture, or none, nothing can be told.

    Args:
        model: a private copy in eval mode, which the task can call.

    Raises:
        InputError: where the hidden part is kept, and what to do; or a state dict that renames tensors.
    """
    if task.Options is not None:
        return  # built-in models are loaded by the task itself
    _check_names(model)
    try:
        fresh = _again(model, task)
        where = None if fresh is None or _alike(model, fresh, task) else next(_hidden(model, fresh), None)
    except Exception:  # whatever a user's `build` raises: what cannot be built again cannot be compared
        return
    if where is not None:
        raise InputError(
            f"{type(model).__name__} computes with {where}, and its state dict does not hold that: built again by "
            f"task {task.name!r} and given the same state, it answers differently, and so would a loaded artifact; "
            "make it a parameter, a persistent buffer or a child module, or set it from constants in __init__"
        )


def _check_names(model: nn.Module) -> None:
    own = {
        name
        for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    }
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and name not in own:
            raise InputError(
                f"the state dict of {type(model).__name__} holds {name!r}, which is no parameter and no buffer of it: "
                "a hook renames its tensors; remove the hook before compressing"
            )


def _again(model: nn.Module, task: Task) -> nn.Module | None:
    """Return the model built anew, with the state of `model`; None where it is of another form."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(DRAWS)
        fresh = private_copy(task.build()).to(device_of(model))
    forms = [{name: (value.shape, value.dtype) for name, value in one.state_dict().items()} for one in (model, fresh)]
    if type(fresh) is not type(model) or forms[0] != forms[1]:
        return None
    fresh.load_state_dict(model.state_dict())
    return fresh


def _alike(model: nn.Module, fresh: nn.Module, task: Task) -> bool:
    work = task.workloads(1).get("forward")
    if work is None or not work.items:
        return True
    given, answers = to_device(work.items[0], device_of(model)), []
    for one in (model, fresh):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(DRAWS)
            answers.append(main_tensor(work.call(one, given), one).double())
    left, right = answers
    if left.shape != right.shape:
        return False
    most = float(left.abs().nan_to_num(0, 0, 0).max()) if left.numel() else 0.0
    return torch.allclose(left, right, rtol=1e-4, atol=1e-4 * most, equal_nan=True)


def _hidden(model: nn.Module, fresh: nn.Module) -> Iterator[str]:
    """Yield what differs between two models of equal state, likeliest first, as words."""
    others = dict(fresh.named_modules())
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name in module._non_persistent_buffers_set:
            if _differ(getattr(module, name, None), getattr(others[path], name, None)):
                yield f"the buffer {prefix}{name} (not persistent)"
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and _differ(value, vars(others[path]).get(name)):
                yield f"the tensor in the attribute {prefix}{name}"
    for layer, where in reached(model, list(model.modules())):
        if any(True for _ in layer.parameters()):
            yield f"a {type(layer).__name__} that {where} keeps outside of the module tree"


def _differ(left: object, right: object) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape != right.shape or not torch.equal(left.detach().cpu(), right.detach().cpu())
    return left is not right
