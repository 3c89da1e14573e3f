"""Whether what a step replaced is used: the old layers cannot be reached any more, and the new ones are called."""

from __future__ import annotations

import torch
from torch import nn

from lessen.architectures.reached import check_unreached
from lessen.errors import InputError
from lessen.stored.base import StoredModule
from lessen.task import Task
from lessen.train.device import device_of, to_device
from lessen.usercode import boundary

Tree = dict[str, nn.Module]


def tree_of(model: nn.Module) -> Tree:
    """Return the layers of a model by every path that they have."""
    return dict(model.named_modules(remove_duplicate=False))


def check_replaced(original: nn.Module, before: Tree, model: nn.Module, step: str) -> None:
    """Refuse a result that still reaches what was replaced, or a layer of the model that was copied.

    Args:
        original: the caller's model, of which `before` shows a copy.
        before: the tree that the step was given.
        model: what the step returned.

    Raises:
        InputError: names the layer and where it is kept.
    """
    now = set(model.modules())
    places = tree_of(model)
    replaced = {
        module: path
        for path, module in before.items()
        if path
        and (module not in now or (places.get(path) is not module and isinstance(places.get(path), StoredModule)))
    }
    if not any(isinstance(module, StoredModule) for module in now - set(before.values())):
        return  # nothing took the place of a layer
    own = tree_of(original)
    gone = {**{own[path]: path for path in replaced.values() if path in own}, **replaced}
    check_unreached(model, gone.keys(), gone, step)


def called(model: nn.Module, task: Task) -> frozenset[str] | None:
    """Return the paths of the layers that one forward of `task` calls, or None for a task that times no forward.

    Args:
        model: a private copy in eval mode.

    Raises:
        InputError: the model cannot be called with the task's first test batch.
    """
    what = f"task {task.name!r} cannot call {type(model).__name__} on its first test batch"
    with boundary(what):
        work = task.workloads(1).get("forward")
    if work is None or not work.items:
        return None
    tree, seen = tree_of(model), set[nn.Module]()
    heard = {module for module in tree.values() if not isinstance(module, torch.jit.ScriptModule)}  # take no hooks
    handles = [module.register_forward_pre_hook(lambda module, _: seen.add(module)) for module in heard]
    try:
        with boundary(what), torch.no_grad():
            work.call(model, to_device(work.items[0], device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(path for path, module in tree.items() if module in seen)


def check_called(before: frozenset[str] | None, model: nn.Module, task: Task, kept: Tree) -> None:
    """Refuse a result in which a compact layer is not called where the layer that it replaced was.

    Args:
        before: what `called` gave for the model without steps.
        kept: the tree of that model.

    Raises:
        InputError: the path of the layer, and what to do.
    """
    new = {
        path: module
        for path, module in tree_of(model).items()
        if isinstance(module, StoredModule) and path in kept and not isinstance(kept[path], StoredModule)
    }
    expected = [path for path in new if path in (before or ())]
    now = called(model, task) if expected else None
    for path in expected:
        if path not in (now or ()):
            raise InputError(
                f"the model calls {path or 'itself'!r}, and not the {type(new[path]).__name__} that took its place: it "
                f"reaches the layer in another way; leave it out with skip={path!r}, or call it as an attribute of "
                "its module"
            )
