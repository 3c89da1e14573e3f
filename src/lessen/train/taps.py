"""What a model and chosen parts of it give in the forward pass of a training step, caught by hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lessen.errors import ConfigError, TaskError, nearest
from lessen.train.nested import tensors_of

INPUT = ":input"
"""After a path: the first input of that module, in place of its output."""
Outputs = dict[str, Tensor]
"""What a model gave for a batch: `OUTPUT` for its main tensor, and the path of each tapped part for its own."""
OUTPUT = "output"


class Taps:
    """Catches outputs of one model.

    Args:
        paths: modules inside the model, such as `layers.3`; of a tuple or mapping their first tensor is taken.
            `head:input` is what goes into the module `head`.
        read: picks the main tensor out of what the model returned, and may raise TaskError.
        training_only: skip forwards in eval mode and without gradients, as validation and probes make them.

    Raises:
        ConfigError: a path that the model does not have.
    """

    def __init__(
        self, model: nn.Module, paths: Sequence[str], read: Callable[[Any, nn.Module], Tensor], *, training_only: bool
    ) -> None:
        known = {path: _found(model, path.removesuffix(INPUT)) for path in paths}
        self.model, self.read, self.training_only = model, read, training_only
        self.paths = tuple(paths)
        self.caught: Outputs = {}
        self._handles: list[RemovableHandle] = []
        for path in paths:
            module = known[path]
            if path.endswith(INPUT):
                self._handles.append(module.register_forward_pre_hook(self._before(path), with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._after(path)))
        self._handles.append(model.register_forward_hook(self._whole))

    def _wanted(self) -> bool:
        return not self.training_only or (self.model.training and torch.is_grad_enabled())

    def _whole(self, model: nn.Module, _inputs: Any, output: Any) -> None:
        if self._wanted():
            self.caught[OUTPUT] = self.read(output, model)

    def _after(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _inputs, output: self._catch(path, output)

    def _before(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, inputs, keywords: self._catch(path, (inputs, keywords))

    def _catch(self, path: str, values: Any) -> None:
        if self._wanted():
            found = next(tensors_of(values), None)
            if found is None:
                raise TaskError(f"{path!r} gives no tensor; tap another part")
            self.caught[path] = found

    def take(self) -> Outputs:
        """Return what the last forward gave, and forget it. Raises TaskError if a part did not run."""
        found, self.caught = self.caught, {}
        for name in (*self.paths, OUTPUT):
            if name not in found:
                what = "model was not called as a whole" if name == OUTPUT else f"module {name!r} did not run"
                raise TaskError(f"the {what} in this step, so that its output cannot be compared with a teacher's")
        return found

    def remove(self) -> None:
        """Take the hooks out of the model."""
        for handle in self._handles:
            handle.remove()
        self.caught = {}


def _found(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a path. Raises ConfigError if the model does not have it."""
    try:
        if path:
            return model.get_submodule(path)
    except AttributeError:
        pass
    known = [other for other, _ in model.named_modules() if other]
    raise ConfigError(f"{type(model).__name__} has no module {path!r} to read; {nearest(path, known)}")
