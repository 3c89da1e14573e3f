"""State files that people have: weights under the prefixes of wrappers, tied weights stored once or twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lessen.artifact.fit import check_forms
from lessen.artifact.tensors import Filed, same_bits
from lessen.errors import ArtifactError

COMPILED, PARALLEL = "_orig_mod.", "module."
"""Prefixes that `torch.compile` puts before the names of a module's tensors, and data-parallel wrappers before all."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers of compilation and data parallelism."""
    while True:
        compiled = model._modules.get("_orig_mod")
        parallel = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = compiled if compiled is not None else model.module if parallel else None
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def load_state(model: nn.Module, path: Path) -> nn.Module:
    """Copy the tensors of a safetensors file into `model` and return it; they take the model's floating types.

    Names may carry the prefixes of a compiled or data-parallel model. The file may hold one or all of tied tensors.

    Raises:
        ArtifactError: the file is no safetensors file, a tensor is missing, left over or does not fit, or tensors
            that the model ties differ.
    """
    filed = Filed([path])
    targets = dict(model.state_dict(keep_vars=True))
    sources = _sources(filed, targets, path)
    check_forms(targets, {name: filed.forms[source] for name, source in sources.items()}, str(path))
    names: dict[str, list[str]] = defaultdict(list)
    for name, source in sources.items():
        names[source].append(name)
    filled: dict[int, tuple[str, str]] = {}
    with torch.no_grad():
        for source, tensor in filed:
            for name in names.get(source, ()):
                before = filled.setdefault(targets[name].data_ptr(), (name, source))
                if before[1] == source or not targets[name].numel():
                    targets[name].copy_(tensor)
                elif not same_bits(targets[name], tensor.to(targets[name].dtype)):
                    raise ArtifactError(f"{path}: {before[0]!r} and {name!r} differ, but the model ties them")
    return model


def _sources(filed: Filed, targets: Mapping[str, Tensor], path: Path) -> dict[str, str]:
    """Return for each tensor of the model the name under which the file has it."""
    plain = _canonical(filed.forms, path)
    wanted = _canonical(targets, path)
    shared: dict[int, list[str]] = defaultdict(list)
    for name, tensor in targets.items():
        if tensor.numel():
            shared[tensor.data_ptr()].append(name)
    recorded = filed.metadata
    found: dict[str, str] = {}
    for short, name in wanted.items():
        ties = [other for other in shared[targets[name].data_ptr()] if _alike(targets[other], targets[name])]
        for other in (short, *map(canonical, ties), canonical(recorded.get(plain.get(short, short), ""))):
            if other in plain:
                found[name] = plain[other]
                break
    used = set(found.values())
    for short, source in plain.items():
        if source not in used:
            raise ArtifactError(f"{path}: the model of the task has no tensor {short!r}; is it the right --task?")
    for name in targets:
        if name not in found:
            raise ArtifactError(f"{path}: the file has no tensor {name!r}; is it the right --task?")
    return found


def _alike(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and left.stride() == right.stride()


def canonical(name: str) -> str:
    """Return a tensor's name without the prefixes of wrappers."""
    name = name.replace(COMPILED, "")
    while name.startswith(PARALLEL):
        name = name[len(PARALLEL) :]
    return name


def _canonical(names: Iterable[str], path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        short = canonical(name)
        if short in found:
            raise ArtifactError(f"{path}: {found[short]!r} and {name!r} are one tensor once wrappers are taken off")
        found[short] = name
    return found
