"""The places where methods act: modules found by type, the reasons to leave one alone, and their replacement."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lessen.architectures.direct_reads import direct_reads
from lessen.architectures.replaceable import watched_by_others
from lessen.errors import ConfigError, nearest
from lessen.method import Context, Method
from lessen.stored.base import StoredModule
from lessen.stored.fields import Segment, cover
from lessen.stored.tables.embedding import TableShape

TABLES = (nn.Embedding, nn.EmbeddingBag)
FUSED_PARENTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules whose fused path reads `child.weight` directly, so that a replaced child would not be called."""

Found = TypeVar("Found", bound=nn.Module)


@dataclass(frozen=True)
class Scope:
    """Places of a step: globs over module paths. A pattern also takes what lies below the module it names."""

    method: str
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def check(self, paths: Iterable[str]) -> None:
        """Raise ConfigError for the first pattern that matches no module."""
        known = list(paths)
        for knob, patterns in (("only", self.only), ("skip", self.skip)):
            for pattern in patterns:
                if not any(matches(path, pattern) for path in known):
                    raise ConfigError(
                        f"{self.method}: {knob} = {pattern!r} matches no module of the model; {nearest(pattern, known)}"
                    )

    def reason(self, paths: Sequence[str]) -> str | None:
        """Return why a module with these paths is left alone, or None."""
        if self.only and not any(matches(path, pattern) for path in paths for pattern in self.only):
            return "is not in `only`"
        if any(matches(path, pattern) for path in paths for pattern in self.skip):
            return "is in `skip`"
        return None


def matches(path: str, pattern: str) -> bool:
    """Tell whether a glob names the module at `path` or one that contains it."""
    parts = path.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))


@dataclass(frozen=True)
class Site:
    """One module to act on and every path it can be reached by (a shared module has several)."""

    paths: tuple[str, ...]
    module: Any

    @property
    def path(self) -> str:
        """The first path, used to name the site in findings."""
        return self.paths[0] or "the model itself"


def find(
    model: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    context: Context,
    reject: Callable[[Any], str | None] | None = None,
    outside: tuple[type[nn.Module], ...] = (),
    scope: Scope | None = None,
) -> list[Site]:
    """Return the modules of `kinds` that can be replaced.

    The others go to `context.findings["skipped"]`, each with its reason.

    Args:
        reject: the caller's own reason to leave a module alone, or None to accept it.
        outside: stored classes whose insides are not searched: what the caller makes itself, so that a second
            application finds nothing.
        scope: where the step may act; everywhere by default. Raises ConfigError for a pattern without a match.
    """
    owners = _parameter_owners(model)
    made = _inside(model, outside)
    fused = {child for parent in model.modules() if isinstance(parent, FUSED_PARENTS) for child in parent.children()}
    read = direct_reads(model)
    sites: list[Site] = []
    found = _paths(model)
    if scope is not None:
        scope.check(path for paths in found.values() for path in paths if path)
    for module, paths in found.items():
        if not isinstance(module, kinds):
            continue
        reason = scope.reason(paths) if scope is not None else None
        if reason is None:
            reason = _obstacle(module, kinds, owners)
        if reason is None and module in fused:
            reason = "its parent's fused path reads the weight directly"
        if reason is None and module in read:
            reason = f"the forward of {read[module]} reads its weight directly"
        if reason is None and module in made:
            reason = f"is inside a {made[module]} already"
        if reason is None and reject is not None:
            reason = reject(module)
        if reason is None:
            sites.append(Site(tuple(paths), module))
        else:
            context.findings.setdefault("skipped", {})[paths[0] or "the model itself"] = reason
    if nn.Linear in kinds:
        _name_stacks(found, scope, context)
    return sites


def _name_stacks(found: dict[nn.Module, list[str]], scope: Scope | None, context: Context) -> None:
    """Say which modules hold stacks of matrices (experts), which are linear layers in all but class and stay.

    They may be most of a model's weights, and no list of linear layers would name them.
    """
    skipped = context.findings.setdefault("skipped", {})
    left, weights = [], 0
    for module, paths in found.items():
        stacks = [name for name, one in module.named_parameters(recurse=False) if one.dim() == 3 and min(one.shape) > 1]
        if not stacks or type(module).__module__.startswith("torch.") or paths[0] in skipped:
            continue
        outside = scope.reason(paths) if scope is not None else None
        skipped[paths[0]] = outside or f"holds stacks of matrices ({', '.join(stacks)}), which are no linear layers"
        if outside is None:
            left.append(paths[0])
            weights += sum(module.get_parameter(name).numel() for name in stacks)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        context.log.note(
            f"{left[0]}{more}: {weights:,} weights in stacks of matrices (experts) stay as they are; linear layers are "
            "taken alone"
        )
    if not skipped:
        del context.findings["skipped"]


def _inside(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[nn.Module, str]:
    """Return the modules that live inside a module of `kinds`, with the name of that module's class."""
    return {
        inner: type(module).__name__
        for module in model.modules()
        if isinstance(module, kinds)
        for inner in module.modules()
    }


def _paths(model: nn.Module) -> dict[nn.Module, list[str]]:
    paths: dict[nn.Module, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        paths[module].append(path)
    return paths


def _parameter_owners(model: nn.Module) -> dict[int, int]:
    """Return in how many modules each parameter is registered."""
    counts: dict[int, int] = defaultdict(int)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            counts[id(parameter)] += 1
    return counts


def _obstacle(module: Any, kinds: Sequence[type[nn.Module]], owners: dict[int, int]) -> str | None:
    """Say why a module cannot be replaced by a compact form without changing what the model does, or None."""
    base = next(kind for kind in kinds if isinstance(module, kind))
    reason = watched_by_others(module)
    if reason is not None:
        return reason
    if type(module).forward is not base.forward:
        return f"is a {type(module).__name__} with a forward of its own"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "its weight is read directly by attention"
    weight = module.weight
    if not isinstance(weight, torch.Tensor) or weight.layout != torch.strided or weight.is_meta:
        return "its weight is sparse, lazy or has no memory"
    if not weight.is_floating_point() or weight.numel() == 0:
        return "its weight is empty or not floating point"
    if any(owners[id(parameter)] > 1 for parameter in module.parameters(recurse=False)):
        return "its weight is tied to another module"
    if getattr(module, "max_norm", None) is not None:
        return "renormalises its rows at lookup (max_norm)"
    return None


def require(sites: list[Site], method: Method, model: nn.Module, context: Context) -> list[Site]:
    """Return `sites`, or raise NothingMatchedError that lists why each candidate was left alone."""
    if sites:
        return sites
    skipped = context.findings.get("skipped", {})
    why = "; ".join(f"{path}: {reason}" for path, reason in list(skipped.items())[:4])
    raise method.nothing_matched(model, why)


def replace(model: nn.Module, site: Site, new: nn.Module) -> nn.Module:
    """Put `new` wherever the site's module is, and return the model (which is `new` if the site is the root)."""
    new.train(site.module.training)
    if isinstance(new, StoredModule):
        new.place = site.path
    for path in site.paths:
        if path == "":
            return new
        parent_path, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent_path), name, new)
    return model


def replace_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put `new` at every path of the module `old`, and return the model."""
    paths = tuple(path for path, module in model.named_modules(remove_duplicate=False) if module is old)
    return replace(model, Site(paths, old), new)


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    tensors: Iterable[torch.Tensor] = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_bytes(model: nn.Module) -> int:
    """Return the bytes of all distinct tensors in the state dictionary (tied tensors counted once)."""
    seen: dict[tuple[int, int], int] = {}
    for tensor in model.state_dict().values():
        seen[(tensor.data_ptr(), tensor.numel())] = tensor.numel() * tensor.element_size()
    return sum(seen.values())


def blocks(shape: TableShape) -> tuple[Segment, ...]:
    """Return the fields of a table; rows between them that belong to no field form nameless fields of their own."""
    return cover(shape.segments or (Segment("all", 0, shape.rows),), shape.rows)


def too_small(table: Any, min_rows: int) -> str | None:
    """Return the reason to leave a table of few rows alone, or None."""
    return (
        f"has {table.num_embeddings} rows, fewer than min_rows {min_rows}" if table.num_embeddings < min_rows else None
    )
