"""Structural changes as data: which modules of a model were replaced, by what, and how to rebuild them.

Only registered `stored` classes and a short list of plain torch layers can be named; nothing is imported by name.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from lessen.errors import ArtifactError
from lessen.stored.base import STORED, StoredModule, load_builtin_kinds

Config = dict[str, Any]
MAX_NAME = 512


class ModuleRecord(BaseModel):
    """One replaced module: where it sits, what it is, and the JSON values that build its empty twin."""

    model_config = ConfigDict(extra="forbid", strict=True)
    path: str = Field(min_length=1, max_length=MAX_NAME)
    kind: str = Field(min_length=1, max_length=64)
    config: dict[str, Any]


def _nothing(_: nn.Module) -> Config:
    return {}


def _linear(module: nn.Linear) -> Config:
    return {"in_features": module.in_features, "out_features": module.out_features, "bias": module.bias is not None}


def _embedding(module: nn.Embedding) -> Config:
    return {
        "num_embeddings": module.num_embeddings, "embedding_dim": module.embedding_dim,
        "padding_idx": module.padding_idx,
    }  # fmt: skip


def _batch_norm(module: nn.BatchNorm1d) -> Config:
    return {"num_features": module.num_features, "eps": module.eps, "affine": module.affine}


def _layer_norm(module: nn.LayerNorm) -> Config:
    return {"normalized_shape": list(module.normalized_shape), "eps": module.eps}


PLAIN: dict[str, tuple[type[nn.Module], Callable[[Any], Config]]] = {
    "torch.Linear": (nn.Linear, _linear),
    "torch.Embedding": (nn.Embedding, _embedding),
    "torch.BatchNorm1d": (nn.BatchNorm1d, _batch_norm),
    "torch.LayerNorm": (nn.LayerNorm, _layer_norm),
    "torch.Identity": (nn.Identity, _nothing),
    "torch.ReLU": (nn.ReLU, _nothing),
    "torch.GELU": (nn.GELU, lambda module: {"approximate": module.approximate}),
}
"""Plain layers whose shape a method may change; matched by exact type."""


def describe(model: nn.Module, base: nn.Module) -> list[ModuleRecord]:
    """Return what must be replaced in `base` to get the shape of `model`, parents before children.

    Raises:
        ArtifactError: a module of an unknown class was added or replaced, so that no file could describe it.
    """
    load_builtin_kinds()
    before = dict(base.named_modules())
    records: list[ModuleRecord] = []
    for path, module in model.named_modules():
        if path == "":
            continue
        other = before.get(path)
        if isinstance(module, StoredModule):
            _require_registered(path, module)
            records.append(ModuleRecord(path=path, kind=module.kind, config=module.config()))
        elif _inside_stored(path, records):
            continue  # rebuilt by its parent's configuration
        elif other is None or type(other) is not type(module) or _differs(module, other):
            records.append(_plain_record(path, module))
    return records


def rebuild(base: nn.Module, records: list[ModuleRecord], shapes: Mapping[str, Any]) -> nn.Module:
    """Return a copy of `base` with the recorded modules put in, empty.

    Args:
        shapes: shape of each tensor in the weight file; each twin is first built without memory and compared, so
            that absurd sizes are refused before anything is allocated.

    Raises:
        ArtifactError: unknown kind, a path that is not in the model, a configuration that makes no sense.
    """
    load_builtin_kinds()
    model = copy.deepcopy(base)
    elsewhere = _other_paths(model, records)
    for record in records:
        builder = _builder(record)
        with refusing(f"structure.json: {record.path}: {record.kind} cannot be built"):
            with torch.device("meta"):
                _compare_shapes(record, builder(), shapes, records)
            module = builder()
        for path in (record.path, *elsewhere.get(record.path, ())):
            with refusing(f"structure.json: {record.path}: {record.kind} has no place in this model"):
                place(model, path, module)
    return model


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever the code of a module raises, ours or a third party's, into one ArtifactError: `what`: why."""
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:  # any class may raise anything for values nobody thought of
        raise ArtifactError(f"{what}: {error if str(error) else type(error).__name__}") from error


def check_stored(model: nn.Module) -> None:
    """Check every stored module of a model: tensors and children against configurations.

    Raises:
        ArtifactError: which module, and what does not fit.
    """
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if isinstance(module, StoredModule) and module not in inside:
            inside.update(module.modules())  # a module checks its children
            with refusing(f"{path}: the tensors of this {module.kind} do not fit its configuration"):
                module.check()


def _other_paths(base: nn.Module, records: list[ModuleRecord]) -> dict[str, list[str]]:
    """Return the other paths of each recorded module that the base model holds in several places."""
    recorded = {record.path for record in records}
    paths: dict[nn.Module, list[str]] = defaultdict(list)
    for path, module in base.named_modules(remove_duplicate=False):
        paths[module].append(path)
    return {
        path: [other for other in shared if other not in recorded]
        for shared in paths.values() if len(shared) > 1
        for path in shared if path in recorded
    }  # fmt: skip


def place(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at the dotted `path` of `model`. Raises ArtifactError when the parent does not exist."""
    parent_path, _, name = path.rpartition(".")
    attach = getattr(module, "attach", None)
    if callable(attach) and not parent_path:
        attach(model)  # a module that adds itself, such as a token reduction
        return
    try:
        parent = model.get_submodule(parent_path)
    except AttributeError as error:
        raise ArtifactError(f"structure.json: the model has no module {parent_path!r} to hold {path!r}") from error
    if name not in parent._modules:
        raise ArtifactError(f"structure.json: the model has no module {path!r}; is it the right base model?")
    parent._modules[name] = module


def _builder(record: ModuleRecord) -> Callable[[], nn.Module]:
    if record.kind in STORED:
        cls = STORED[record.kind]
        return lambda: cls.from_config(record.config)
    if record.kind in PLAIN:
        plain, _ = PLAIN[record.kind]
        return lambda: plain(**record.config)
    known = ", ".join(sorted([*STORED, *PLAIN]))
    raise ArtifactError(
        f"structure.json: {record.path}: unknown stored class {record.kind!r}; this version has {known}"
    )


def _compare_shapes(
    record: ModuleRecord, twin: nn.Module, shapes: Mapping[str, Any], records: list[ModuleRecord]
) -> None:
    """Refuse a twin whose tensors differ from the file, except under children that have a record of their own."""
    nested = tuple(f"{other.path}." for other in records if other.path.startswith(f"{record.path}."))
    for name, tensor in twin.state_dict().items():
        full = f"{record.path}.{name}"
        if full.startswith(nested) if nested else False:
            continue
        stored = shapes.get(full)
        if stored is None:
            raise ValueError(f"the weight file has no tensor {full!r}")
        if list(stored) != list(tensor.shape):
            raise ValueError(f"tensor {full!r} has shape {list(stored)}, the structure says {list(tensor.shape)}")


def _require_registered(path: str, module: StoredModule) -> None:
    if STORED.get(getattr(module, "kind", "")) is not type(module):
        raise ArtifactError(
            f"{path}: {type(module).__name__} is not a registered stored class; decorate it with @stored"
        )


def _inside_stored(path: str, records: list[ModuleRecord]) -> bool:
    return any(path.startswith(f"{record.path}.") and record.kind in STORED for record in records)


def _differs(module: nn.Module, other: nn.Module) -> bool:
    """Tell whether two modules of one class hold tensors of other shapes or were built with other settings."""
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if "." not in name}
    theirs = {name: tuple(tensor.shape) for name, tensor in other.state_dict().items() if "." not in name}
    return own != theirs or _plain_config(module) != _plain_config(other)


def _plain_config(module: nn.Module) -> Config | None:
    for cls, config in PLAIN.values():
        if type(module) is cls:
            return config(module)
    return None


def _plain_record(path: str, module: nn.Module) -> ModuleRecord:
    for kind, (cls, config) in PLAIN.items():
        if type(module) is cls:
            return ModuleRecord(path=path, kind=kind, config=config(module))
    raise ArtifactError(
        f"{path}: a {type(module).__name__} was put into the model, which no artifact can describe; "
        "methods must leave stored modules or plain torch layers"
    )


def state_shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the shape of each tensor by name."""
    return {name: list(tensor.shape) for name, tensor in state.items()}
