"""Structural changes as data: which modules of a model were replaced, by what, and how to rebuild them.

Only registered `stored` classes and a short list of plain torch layers can be named; nothing is imported by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from lessen.architectures.intake import copied
from lessen.artifact.fit import check_forms, check_no_meta, check_one, check_stored, refusing
from lessen.artifact.plain import HOLDERS, PLAIN, build_plain, plain_config, plain_name, same_class
from lessen.artifact.tensors import Form, Weights
from lessen.errors import ArtifactError
from lessen.stored.base import STORED, StoredModule, StoredPatch, load_builtin_kinds

MAX_NAME = 512


class ModuleRecord(BaseModel):
    """One replaced module: where it sits, what it is, and the JSON values that build its empty twin."""

    model_config = ConfigDict(extra="forbid", strict=True)
    path: str = Field(min_length=1, max_length=MAX_NAME)
    kind: str = Field(min_length=1, max_length=64)
    config: dict[str, Any]


# -- describing --------------------------------------------------------------------------------------------------
def describe(model: nn.Module, base: nn.Module) -> list[ModuleRecord]:
    """Return what must be replaced in `base` to get the shape of `model`, parents before children.

    Raises:
        ArtifactError: a module of an unknown class was added or replaced, so that no file could describe it.
    """
    load_builtin_kinds()
    before = dict(base.named_modules())
    records: list[ModuleRecord] = []
    inside: set[nn.Module] = set()  # rebuilt by the configuration of a stored parent
    for path, module in model.named_modules():
        other = before.get(path)
        if path == "":
            continue
        if isinstance(module, StoredModule):
            _require_registered(path, module)
            records.append(ModuleRecord(path=path, kind=module.kind, config=module.config()))
            inside.update(module.modules())
        elif module not in inside and (other is None or not same_class(module, other) or _differs(module, other)):
            records.append(_plain_record(path, module))
    return records


def is_patch(record: ModuleRecord) -> bool:
    """Tell whether a record is of a class that adds itself to a model, rather than of a module that was replaced."""
    return issubclass(STORED.get(record.kind, nn.Module), StoredPatch)


def _require_registered(path: str, module: StoredModule) -> None:
    if STORED.get(getattr(module, "kind", "")) is not type(module):
        raise ArtifactError(
            f"{path}: {type(module).__name__} is not a registered stored class; decorate it with @stored"
        )


def _differs(module: nn.Module, other: nn.Module) -> bool:
    """Tell whether two modules of one class hold tensors of other shapes or were built with other settings."""
    return _own_shapes(module) != _own_shapes(other) or plain_config(module) != plain_config(other)


def _own_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in _kept(module)}


def _plain_record(path: str, module: nn.Module) -> ModuleRecord:
    kind, config = plain_name(module), plain_config(module)
    if kind is None or config is None:
        raise ArtifactError(
            f"{path}: a {type(module).__name__} was put into the model, which no artifact can describe; "
            "methods must leave stored modules or plain torch layers"
        )
    return ModuleRecord(path=path, kind=kind, config=config)


# -- rebuilding --------------------------------------------------------------------------------------------------
def assemble(
    base: nn.Module, records: list[ModuleRecord], weights: Weights, tied: Mapping[str, str], where: str
) -> nn.Module:
    """Put the recorded modules into `base` and all tensors into the result, everything checked; return it.

    `base` itself is changed; give a `hollow` copy of a model that belongs to somebody else.

    Args:
        tied: names of tensors that share another's values, each with the name of the other.

    Raises:
        ArtifactError: a module that cannot be built, a tensor that is missing, left over or does not fit, a stored
            module whose tensors disagree with its configuration.
    """
    forms = _all_forms(weights, tied, where)
    model, patches = rebuild(base, records, forms)
    targets = dict(model.state_dict(keep_vars=True))
    for path, patch in patches.items():
        targets |= patch.state_dict(prefix=f"{path}.", keep_vars=True)
    check_forms(targets, forms, where)
    _fill(targets, weights, tied)
    _share(model, tied)
    check_stored(model)
    check_no_meta(model, where)
    for path, patch in patches.items():  # last: a patch may try the layers that it is put on
        check_one(path, patch)
        with refusing(f"structure.json: {path}: {patch.kind} has no place in this model"):
            patch.attach(model)
    return model


def _all_forms(weights: Weights, tied: Mapping[str, str], where: str) -> dict[str, Form]:
    """Return the forms of all tensors, those of tied names too."""
    forms = dict(weights.forms)
    for name, source in tied.items():
        if source not in weights.forms:
            raise ArtifactError(f"{where}: {name!r} is tied to {source!r}, which the weight file does not hold")
        if name in weights.forms:
            raise ArtifactError(f"{where}: {name!r} is tied to {source!r} and stored too")
        forms[name] = weights.forms[source]
    return forms


def rebuild(
    model: nn.Module, records: list[ModuleRecord], forms: Mapping[str, Form]
) -> tuple[nn.Module, dict[str, StoredPatch]]:
    """Put the recorded modules, empty, into `model`, and return it with its patches by name, empty and not attached.

    Args:
        forms: shape of each tensor in the weight file; each twin is first built without memory and compared, so
            that absurd sizes are refused before anything is allocated.

    Raises:
        ArtifactError: an unknown kind, a path that is not in the model or is named twice, a configuration that makes
            no sense.
    """
    load_builtin_kinds()
    paths = _distinct_paths(records)
    elsewhere = _other_paths(model, paths)
    patches: dict[str, StoredPatch] = {}
    for record in records:
        with refusing(f"structure.json: {record.path}: {record.kind} cannot be built"):
            with torch.device("meta"):
                _compare_shapes(record, _build(record), forms, paths)
            module = _build(record)
        if isinstance(module, StoredPatch):
            if "." in record.path:
                raise ArtifactError(f"structure.json: {record.path!r} is a patch, which only the whole model can hold")
            patches[record.path] = module
            continue
        for path in (record.path, *elsewhere.get(record.path, ())):
            with refusing(f"structure.json: {record.path}: {record.kind} has no place in this model"):
                place(model, path, module)
    return model, patches


def hollow(
    base: nn.Module, records: list[ModuleRecord], weights: Weights, tied: Mapping[str, str], where: str
) -> nn.Module:
    """Return a copy of a model to put the recorded modules into: its tensors hold nothing until they are filled.

    Tensors of modules that will be replaced take no memory at all; those that stay are compared with the weight file
    before any is made. Buffers that no file keeps are copied. Tensors on the device "meta" get room on the CPU.

    Raises:
        ArtifactError: a tensor that stays is not in the file, or has another shape there.
    """
    memo: dict[int, Any] = {
        id(tensor): _empty(tensor, on_cpu=True) for tensor in staying(base, records, weights, tied, where)
    }
    for module in _replaced(base, records):
        memo.update((id(tensor), _empty(tensor)) for _, tensor in _kept(module) if id(tensor) not in memo)
    return copied(base, memo)


def staying(
    base: nn.Module, records: list[ModuleRecord], weights: Weights, tied: Mapping[str, str], where: str
) -> list[Tensor]:
    """Return the tensors of a base that no record takes the place of, each compared with the weight file.

    Raises:
        ArtifactError: one is not in the file, or has another shape there.
    """
    forms = _all_forms(weights, tied, where)
    gone, known = _replaced(base, records), set(base.state_dict(keep_vars=True))
    stay: dict[int, Tensor] = {}
    for path, module in base.named_modules(remove_duplicate=False):
        if module in gone:
            continue
        for name, tensor in _kept(module):
            full = f"{path}.{name}" if path else name
            form = forms.get(full)
            if form is None and full in known:
                raise ArtifactError(f"{where}: tensor {full!r} is missing; is it the right base model?")
            if form is not None and form.shape != tuple(tensor.shape):
                shapes = f"{list(form.shape)}, the model needs {list(tensor.shape)}"
                raise ArtifactError(f"{where}: tensor {full!r} has shape {shapes}; is it the right base model?")
            stay[id(tensor)] = tensor
    return list(stay.values())


def _replaced(base: nn.Module, records: list[ModuleRecord]) -> set[nn.Module]:
    """Return the modules of a base that records take the place of, and all inside them."""
    gone: set[nn.Module] = set()
    for record in records:
        if is_patch(record):
            continue
        with suppress(AttributeError):  # a path inside a module that is replaced itself
            before = base.get_submodule(record.path)
            if isinstance(before, HOLDERS) and plain_name(before) == record.kind:
                places = {str(place) for place in range(_length(record))}
                for key, child in before._modules.items():
                    if key not in places and child is not None:  # a holder that became shorter
                        gone.update(child.modules())
            else:
                gone.update(before.modules())
    return gone


def _length(record: ModuleRecord) -> int:
    """Return how many children a holder shall have; 0 where the record is nonsense, which building it refuses."""
    length = record.config.get("length")
    return length if type(length) is int and 0 <= length <= 10_000 else 0


def _kept(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module, without its children, that its state keeps."""
    for name, tensor in {**module._parameters, **module._buffers}.items():
        if tensor is not None and name not in module._non_persistent_buffers_set:
            yield name, tensor


def _empty(tensor: Tensor, on_cpu: bool = False) -> Tensor:
    """Return a tensor like another without its values; without memory unless it is made on the CPU."""
    if on_cpu:
        made = torch.empty_like(tensor, device="cpu" if tensor.is_meta else tensor.device).detach()
    else:
        made = torch.empty_like(tensor, device="meta").detach()
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _distinct_paths(records: list[ModuleRecord]) -> set[str]:
    paths: set[str] = set()
    for record in records:
        if record.path in paths:
            raise ArtifactError(f"structure.json: {record.path} is recorded twice")
        paths.add(record.path)
    return paths


def _other_paths(base: nn.Module, recorded: set[str]) -> dict[str, list[str]]:
    """Return the other paths of each recorded module that the base model holds in several places."""
    paths: dict[nn.Module, list[str]] = defaultdict(list)
    for path, module in base.named_modules(remove_duplicate=False):
        paths[module].append(path)
    return {
        path: [other for other in shared if other not in recorded]
        for shared in paths.values()
        if len(shared) > 1
        for path in shared
        if path in recorded
    }


def place(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at the dotted `path` of `model`. Raises ArtifactError when the parent does not exist."""
    parent_path, _, name = path.rpartition(".")
    try:
        parent = model.get_submodule(parent_path)
    except AttributeError as error:
        raise ArtifactError(f"structure.json: the model has no module {parent_path!r} to hold {path!r}") from error
    if name not in parent._modules:
        raise ArtifactError(f"structure.json: the model has no module {path!r}; is it the right base model?")
    before = parent._modules[name]
    if isinstance(module, HOLDERS) and type(before) is type(module):
        for key in module._modules.keys() & before._modules.keys():
            module._modules[key] = before._modules[key]  # a holder that became longer or shorter keeps what it held
    parent._modules[name] = module


def _build(record: ModuleRecord) -> nn.Module:
    if record.kind in STORED:
        return STORED[record.kind].from_config(record.config)
    if record.kind in PLAIN:
        return build_plain(record.kind, record.config)
    known = ", ".join(sorted([*STORED, *PLAIN]))
    raise ArtifactError(
        f"structure.json: {record.path}: unknown stored class {record.kind!r}; this version has {known}"
    )


def _compare_shapes(record: ModuleRecord, twin: nn.Module, forms: Mapping[str, Form], paths: set[str]) -> None:
    """Refuse a twin whose tensors differ from the file, except under children that have a record of their own."""
    for name, tensor in twin.state_dict().items():
        full = f"{record.path}.{name}"
        if not paths.isdisjoint(_parents(full, record.path)):
            continue
        form = forms.get(full)
        if form is None:
            raise ValueError(f"the weight file has no tensor {full!r}")
        if form.shape != tuple(tensor.shape):
            raise ValueError(f"tensor {full!r} has shape {list(form.shape)}, the structure says {list(tensor.shape)}")


def _parents(name: str, top: str) -> Iterator[str]:
    """Yield the paths of modules between the module `top` and its tensor `name`, without `top`."""
    path = name.rpartition(".")[0]
    while len(path) > len(top):
        yield path
        path = path.rpartition(".")[0]


# -- checking ----------------------------------------------------------------------------------------------------
def _fill(targets: Mapping[str, Tensor], weights: Weights, tied: Mapping[str, str]) -> None:
    """Copy tensors to their places; one of another floating type than its place brings its own.

    What a stored module cannot have, its own check refuses afterwards.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for name, source in tied.items():
        names[source].append(name)
    with torch.no_grad():
        for source, tensor in weights:
            for name in (source, *names[source]):
                target = targets[name]
                if target is tensor:
                    continue
                if target.dtype != tensor.dtype:
                    target.data = torch.empty(tensor.shape, dtype=tensor.dtype, device=target.device)
                target.copy_(tensor)


def _share(model: nn.Module, tied: Mapping[str, str]) -> None:
    """Let buffers of equal form that were stored once be one tensor in memory too, such as the codes of a tied head."""
    holders = {
        f"{path}.{name}" if path else name: (module, name)
        for path, module in model.named_modules(remove_duplicate=False)
        for name in module._buffers.keys()  # noqa: SIM118 - those of a scripted module iterate by number
    }
    for name, source in tied.items():
        if name in holders and source in holders:
            (module, own), (other, its) = holders[name], holders[source]
            left, right = module._buffers[own], other._buffers[its]
            if left is not None and right is not None and (left.shape, left.dtype) == (right.shape, right.dtype):
                module._buffers[own] = right
