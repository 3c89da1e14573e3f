"""Teachers: models whose outputs others learn from, and the hook that hands a student both its own and theirs.

batch -> teacher (eval, no gradient, its own precision) -> outputs, from disk where the rows came before
batch -> task's loss of the student, its outputs caught   -> DistilHook.distil(loss, student, teacher, batch)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.loading import load_host
from lessen.errors import ConfigError, NonFiniteError, TaskError
from lessen.log import SILENT, Log
from lessen.train.device import device_of, to_device
from lessen.train.hooks import Hook
from lessen.train.nested import digest_of_tensors, tensors_of
from lessen.train.output_cache import OutputCache, row_keys
from lessen.train.taps import OUTPUT, Outputs, Taps

Forward = Callable[[nn.Module, Any], Tensor]
"""Calls a model on a batch and returns its main tensor, as `Task.forward` does."""
Read = Callable[[Any, nn.Module], Tensor]
"""Picks the main tensor out of what a model returned, as `task.main_tensor` does."""


def open_teacher(source: nn.Module | str | Path, log: Log = SILENT) -> nn.Module:
    """Return a teacher in eval mode: a module, or the model of a Hugging Face folder, a GGUF file, the built-in one.

    Raises:
        ConfigError, DataError: nothing that can be read is there.
        MissingExtraError: transformers is not installed.
    """
    model: nn.Module = source if isinstance(source, nn.Module) else load_host(str(source), log=log)
    return model.eval()


class Teacher:
    """A model that is asked and never changed.

    It runs in eval mode without gradients, outside of any autocast, on its own device, also where a student shares its
    modules and trains: their mode is put back after each call.

    Args:
        forward: how it is called on a batch.
        taps: paths of modules whose outputs are wanted as well.
        cache: keeps outputs on disk; for batches whose rows come again unchanged.

    Raises:
        ConfigError: the teacher has no module of a tapped path.
        ArtifactError: the cache belongs to another teacher or is damaged.
    """

    def __init__(
        self, model: nn.Module, forward: Forward, *, taps: Sequence[str] = (), cache: OutputCache | None = None
    ) -> None:
        self.model, self.forward, self.taps, self.cache = model, forward, tuple(taps), cache
        Taps(model, self.taps, _nothing, training_only=False).remove()
        if cache is not None:
            cache.open(digest_of(model), self._names())

    def _names(self) -> Sequence[str]:
        """Return what a cache says that it holds."""
        return [OUTPUT, *self.taps]

    def __call__(self, batch: Any) -> Outputs:
        """Return the outputs for a batch, on its device.

        Raises:
            NonFiniteError: the teacher gave NaN or infinity.
            DataError: rows shall be cached and the batch does not tell them apart.
        """
        if self.cache is None:
            return self.ask(batch)
        keys = row_keys(batch)
        found = self.cache.find(keys)
        if found is None:
            found = self.ask(batch)
            self.cache.add(keys, found)
        return {name: to_device(tensor, _device(batch)) for name, tensor in found.items()}

    def ask(self, batch: Any) -> Outputs:
        """Return the outputs for a batch, on its device, past the cache.

        Raises:
            NonFiniteError: see above. TaskError: the task's forward gives no tensor for the teacher.
        """
        taps = Taps(self.model, self.taps, _nothing, training_only=False)
        device = device_of(self.model)
        try:
            with torch.no_grad(), torch.autocast(device.type, enabled=False), evaluating(self.model):
                main = self.forward(self.model, to_device(batch, device))
            if not isinstance(main, Tensor):
                raise TaskError(
                    f"the task's forward gives {type(main).__name__} for the teacher, a {type(self.model).__name__}; "
                    "let it return the one tensor that the student's answers are compared with"
                )
            found = {OUTPUT: main, **{path: taps.caught[path] for path in self.taps if path in taps.caught}}
        finally:
            taps.remove()
        for path in self.taps:
            if path not in found:
                raise ConfigError(f"the teacher's module {path!r} did not run; tap another part")
        for name, tensor in found.items():
            if not _finite(tensor):
                bad = int((~torch.isfinite(tensor)).sum())
                where = "" if name == OUTPUT else f" in {name!r}"
                raise NonFiniteError(
                    f"the teacher gave NaN or infinity for {bad} of {tensor.numel()} values{where}; nothing can be "
                    "learned from it: check its weights and that it gets the inputs it was trained on"
                )
        return {name: to_device(tensor, _device(batch)) for name, tensor in found.items()}

    def close(self) -> None:
        """Write what the cache still holds in memory. Raises OutputError."""
        if self.cache is not None:
            self.cache.flush()


class DistilHook(Hook):
    """Base of what learns from a teacher: `distil` gets the task's loss and the outputs of both for the same batch.

    Args:
        read: picks the student's main tensor out of what it returned.
        taps: paths of modules of the student whose outputs are wanted as well.
    """

    def __init__(self, teacher: Teacher, read: Read, taps: Sequence[str] = ()) -> None:
        self.teacher, self.read, self.taps = teacher, read, tuple(taps)
        self._caught: Taps | None = None

    def start(self, model: nn.Module) -> None:
        """Watch the student. Raises ConfigError if it has no module of a tapped path."""
        self._caught = Taps(model, self.taps, self.read, training_only=True)

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:  # noqa: ARG002 - the contract's signature
        """Return what `distil` makes of the loss, a scalar."""
        assert self._caught is not None
        return self.distil(loss, self._caught.take(), self.teacher(batch), batch)

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:
        """Return the loss to minimise: scalar, from the task's loss and the outputs of both on `batch`."""
        raise NotImplementedError(f"{type(self).__name__}.distil")

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Forget what a backward pass that recomputes has caught again."""
        assert self._caught is not None
        self._caught.caught = {}

    def finish(self, model: nn.Module) -> None:  # noqa: ARG002
        """Stop watching, and write what the cache holds."""
        if self._caught is not None:
            self._caught.remove()
        self.teacher.close()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode inside the block; afterwards each has the mode it had."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def digest_of(model: nn.Module) -> str:
    """Return a SHA-256 of what a model computes with: its class, and the names, types and bytes of its tensors."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    return hashlib.sha256(f"{kind} {digest_of_tensors(tensors)}".encode()).hexdigest()


def _finite(tensor: Tensor) -> bool:
    """Tell whether all values are finite: by their sum, one reading of them, and one by one only where that is not."""
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def _nothing(_output: Any, _model: nn.Module) -> Tensor:
    return torch.empty(0)


def _device(batch: Any) -> torch.device:
    return next((tensor.device for tensor in tensors_of(batch)), torch.device("cpu"))
