"""Whether tensors fit a model: names, shapes and types before they are copied, stored modules and buffers after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from lessen.artifact.tensors import Form
from lessen.errors import ArtifactError
from lessen.stored.base import StoredModule


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever the code of a module raises, ours or a third party's, into one ArtifactError: `what`: why."""
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:  # any class may raise anything for values nobody thought of
        raise ArtifactError(f"{what}: {error if str(error) else type(error).__name__}") from error


def check_forms(expected: Mapping[str, Tensor], forms: Mapping[str, Form], where: str) -> None:
    """Name the first tensor that is missing, left over, or of another shape or kind of number. Raises ArtifactError."""
    for name, tensor in expected.items():
        found = forms.get(name)
        if found is None:
            raise ArtifactError(f"{where}: tensor {name!r} is missing; is it the right base model?")
        if not isinstance(tensor, Tensor):
            raise ArtifactError(f"{where}: {name!r} of the model is a {type(tensor).__name__}, not a tensor")
        if found.shape != tuple(tensor.shape):
            shapes = f"{list(found.shape)}, the model needs {list(tensor.shape)}"
            raise ArtifactError(f"{where}: tensor {name!r} has shape {shapes}; is it the right base model?")
        if found.dtype != tensor.dtype and not (found.dtype.is_floating_point and tensor.dtype.is_floating_point):
            raise ArtifactError(f"{where}: tensor {name!r} is {found.dtype}, the model needs {tensor.dtype}")
    for name in forms:
        if name not in expected:
            raise ArtifactError(f"{where}: tensor {name!r} has no place in the model; is it the right base model?")


def check_stored(model: nn.Module) -> None:
    """Check every stored module of a model: tensors and children against configurations.

    Raises:
        ArtifactError: which module, and what does not fit.
    """
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if isinstance(module, StoredModule) and module not in inside:
            inside.update(module.modules())  # a module checks its children
            check_one(path, module)


def check_one(path: str, module: StoredModule) -> None:
    """Check one stored module, named by its path. Raises ArtifactError."""
    with refusing(f"{path}: the tensors of this {module.kind} do not fit its configuration"):
        module.check()


def check_no_meta(model: nn.Module, where: str) -> None:
    """Refuse a model with a buffer that no file holds and that has no values either. Raises ArtifactError."""
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise ArtifactError(
                f"{where}: the buffer {name!r} of the model is on the device 'meta' and in no file; build it on the CPU"
            )
