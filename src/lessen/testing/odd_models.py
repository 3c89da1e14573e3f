"""Odd models that real users have: tied, frozen, shared, strided, parametrised, hooked and wrapped modules."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lessen.testing.behaviour import survives
from lessen.testing.case import Case, NotApplicable, expect


def frozen_parameters(case: Case) -> None:
    """A fully frozen model is compressed or refused; parameters that stay keep their flag."""
    model = copy.deepcopy(case.model).requires_grad_(False)
    result = survives(case, model)
    if result is None:
        return
    before = dict(model.named_parameters())
    for name, parameter in result.named_parameters():
        if name in before and parameter.shape == before[name].shape:
            expect(not parameter.requires_grad, f"{name} was frozen and now requires gradients")


def strided_parameters(case: Case) -> None:
    """Non-contiguous weights give the result that contiguous ones give."""
    model = copy.deepcopy(case.model)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()
    result = survives(case, model)
    expect(result is not None, "non-contiguous weights were refused")
    if result is not None and "training" not in case.method.card.needs:
        order = float((case.outputs(model) - case.outputs(case.model)).abs().max())  # sums are taken in another order
        close = torch.allclose(case.outputs(result), case.outputs(case.result), rtol=1e-4, atol=1e-5 + 4 * order)
        expect(close, "non-contiguous weights give other outputs than contiguous ones")


def tied_parameters(case: Case) -> None:
    """A weight that two modules share stays shared, or is left alone."""
    for path, target in _targets(case, copy.deepcopy(case.model)):
        model = copy.deepcopy(case.model)
        original = model.get_submodule(path)
        twin = copy.deepcopy(target)
        twin.weight = original.weight
        model.add_module("tied_twin", twin)
        result = survives(case, model)
        if result is None:
            continue
        kept, other = result.get_submodule(path), result.get_submodule("tied_twin")
        still = getattr(kept, "weight", None) is getattr(other, "weight", ...) or kept is other
        expect(still, f"{path} and tied_twin shared a weight and no longer do")


def shared_modules(case: Case) -> None:
    """A module reachable by two paths is one module afterwards too."""
    for path, _ in _targets(case, copy.deepcopy(case.model)):
        model = copy.deepcopy(case.model)
        model.add_module("second_name", model.get_submodule(path))
        result = survives(case, model)
        if result is not None and "second_name" in dict(result.named_children()):
            same = result.get_submodule(path) is result.get_submodule("second_name")
            expect(same, f"{path} had two names and now is two modules")


def parametrised_modules(case: Case) -> None:
    """A parametrised weight is refused, skipped, or handled; outputs stay finite."""
    model = copy.deepcopy(case.model)
    for _, module in _targets(case, model):
        parametrize.register_parametrization(module, "weight", _Halved())
    survives(case, model)


def hooked_modules(case: Case) -> None:
    """A hook that the user attached to a module still runs after compression."""
    calls: list[str] = []
    model = copy.deepcopy(case.model)
    for path, module in _targets(case, model):
        module.register_forward_hook(lambda _m, _i, _o, path=path: calls.append(path))
    result = survives(case, model)
    if result is not None:
        calls.clear()
        case.outputs(result)
        expect(len(set(calls)) == len(_targets(case, case.model)), "a user's forward hook no longer runs")


def own_forward(case: Case) -> None:
    """A subclass with a forward of its own keeps doing what it does."""
    model = copy.deepcopy(case.model)
    targets = _targets(case, model)
    for path, module in targets:
        parent_path, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent_path), name, _subclass(module))
    before = case.outputs(model)
    result = survives(case, model)
    if result is None:
        return
    expect(case.outputs(result).shape == before.shape, "outputs changed their shape")
    for path, module in targets:
        kept = result.get_submodule(path)
        marked = getattr(type(kept), "has_own_forward", False)
        expect(marked, f"{path} was a {type(module).__name__} with its own forward and became a {type(kept).__name__}")


class _Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        """Return half the weight."""
        return weight * 0.5


def _targets(case: Case, model: nn.Module) -> list[tuple[str, Any]]:
    """Return the modules with a weight of the types that the method acts on."""
    kinds = case.method.card.module_types
    found = [(path, m) for path, m in model.named_modules() if path and isinstance(m, kinds) and _has_weight(m)]
    if not found:
        raise NotApplicable("the method acts on no module with a weight of its own")
    return found


def _has_weight(module: nn.Module) -> bool:
    return isinstance(module._parameters.get("weight"), nn.Parameter)


def _subclass(module: nn.Module) -> nn.Module:
    """Return a copy of `module` whose class doubles what the base class returns."""

    def forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return 2 * base.forward(self, *arguments, **keywords)

    base = type(module)
    made = copy.copy(module)
    made.__class__ = type(f"Scaled{base.__name__}", (base,), {"forward": forward, "has_own_forward": True})
    return made
