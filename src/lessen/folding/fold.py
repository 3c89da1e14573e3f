"""One saving that changes no output, and which modules may take part in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from lessen.architectures.replaceable import watched_by_others
from lessen.folding.flow import Flow, Step


@dataclass(frozen=True)
class Fold:
    """What goes away, into what, and how: `apply` finds modules by path, so that it serves any copy of the model."""

    kind: str
    path: str
    into: str
    """Paths of what takes it in, "" where nothing has to."""
    apply: Callable[[nn.Module], None]


@dataclass
class Found:
    """What a search found to fold, and why it left other places alone."""

    folds: list[Fold] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def ready(flow: Flow, path: str, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """Return why a layer of torch cannot be changed or removed, or None.

    Args:
        kinds: exact classes that may.
    """
    module = flow.modules.get(path)
    if type(module) not in kinds or module is None:
        return f"is a {type(module).__name__}"
    reason = watched_by_others(module)
    if reason is not None:
        return reason
    if module.training:
        return "is in training mode"
    if flow.calls[path] != 1:
        return "is never called" if not flow.calls[path] else f"is called {flow.calls[path]} times a pass"
    step = flow.step_of(path)
    if step is None:
        return "does something else than its class says"
    own = dict((*module.named_parameters(), *module.named_buffers()))
    shared = next((name for name, tensor in own.items() if flow.owners[id(tensor)] > 1), None)
    if shared is not None:
        return f"shares {shared} with another module"
    for name in own:
        value = flow.numbers[f"{path}.{name}"]
        if any(user is not step for user in flow.users[value]):
            return f"another part of the model reads {path}.{name}"
    return None


def watched(module: nn.Module) -> str:
    """Return why a module cannot be replaced with all that is in it, or ""."""
    return next((reason for part in module.modules() if (reason := watched_by_others(part))), "")


def put(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` at every path where the module at `path` is."""
    old = model.get_submodule(path)
    places = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
    for place in places:
        parent, _, name = place.rpartition(".")
        setattr(model.get_submodule(parent), name, new.train(old.training))


def layer_of(flow: Flow, step: Step | None, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """Return the path of the changeable layer that made a step, or None."""
    if step is None or not step.path or flow.step_of(step.path) is not step:
        return None
    return None if ready(flow, step.path, kinds) else step.path
