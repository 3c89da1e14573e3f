"""The whole search: fold after fold until none is left, each proven before it is kept, in float64 if the model can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.intake import copied
from lessen.errors import TaskError
from lessen.folding import affine, branches, chains, constants, norms, serving, tensors, units
from lessen.folding.flow import Call, Flow, mapped, same_course
from lessen.folding.fold import Fold, Found
from lessen.folding.proof import answers, bound_of, error, more_calls

ROUNDS = 50
ROUNDINGS = 100
"""Times the bound that answers may move when what was folded in float64 is rounded to the model's own precision."""
LIBRARIES = ("transformers.", "timm.", "torchvision.")
Leave = Callable[[str], str | None]
SEARCHES = (norms.find, branches.find, chains.find, units.find, affine.find)


@dataclass
class Folded:
    """A model that answers as before, and what was done to it."""

    model: nn.Module
    folds: list[Fold] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    """What was looked at and left alone, by path, with the reason."""
    error: float = 0.0
    """Largest difference of an answer, relative to the largest value, in the precision of the proof."""
    bound: float = 0.0
    unused: tuple[str, ...] = ()
    """Modules with weights of their own that no call reached: they may serve other inputs, and stay."""


def fold(model: nn.Module, calls: Sequence[Call], generator: torch.Generator, leave: Leave = lambda _: None) -> Folded:
    """Fold what can be folded of a model in eval mode; the model itself is not changed.

    Args:
        leave: why a module or parameter has to stay as it is, by path, or None.
        calls: arguments and keywords of forwards as they are served, one or more.
        generator: draws further inputs for the proofs.

    Raises:
        TaskError: the model does not answer twice alike, or takes other steps for other inputs.
    """
    if not calls:
        raise TaskError("folding needs at least one input of the model to prove itself on")
    with _still(model):
        exact = plainly_copied(model)
        wide = _widened(exact, calls)
        served = [_wide_call(call) for call in calls] if wide else list(calls)
        prover = _Prover(exact if wide else plainly_copied(model), more_calls(served, generator), leave)
        found = _fold_all(prover, served)
        result = _narrowed(model, found.folds, prover.model) if wide else prover.model
        last = _Prover(plainly_copied(model), more_calls(list(calls), generator, 0), leave)
        if not last.replace_with(result):  # a part keeps what it worked out of weights at its first call
            found.kept = {
                each.path: "folding it changes an answer in the model's own precision" for each in found.folds
            }
            found.folds = []
        for search in (tensors.doubles, tensors.long_floats):
            more = search(last.model)
            last.take(more, found)
    found.model, found.error, found.bound = last.model, max(prover.worst, last.worst), prover.bound
    return found


def plainly_copied(model: nn.Module) -> nn.Module:
    """Return a copy in which a library's subclass of a layer that adds nothing but a constructor is torch's layer."""
    made = copied(model)
    for module in made.modules():
        kind: Any = next((one for one in (*norms.LAYERS, *norms.NORMS) if isinstance(module, one)), None)
        own: Any = type(module)
        if kind is None or own is kind or not own.__module__.startswith(LIBRARIES):
            continue
        if own.forward is kind.forward and getattr(own, "_conv_forward", 0) is getattr(kind, "_conv_forward", 0):
            module.__class__ = kind
    return made


class _Prover:
    """Holds a model, and takes a fold only if the answers stay."""

    def __init__(self, model: nn.Module, calls: Sequence[Call], leave: Leave) -> None:
        self.model, self.leave = model, leave
        self.calls = self._answered(calls)
        self.expected = answers(model, self.calls)
        self.flow = Flow.record(model, self.calls[0])
        self.bound = bound_of(self.expected, self.flow.low_precision and _is_wide(model))
        self.worst = 0.0
        again = error(answers(model, self.calls), self.expected)
        if again > self.bound:
            raise TaskError("the model does not answer one input twice alike; what folding changes cannot be told")

    def _answered(self, calls: Sequence[Call]) -> list[Call]:
        """Return the calls that the model answers: a drawn one may be an input that it refuses."""
        first, kept = calls[0], []
        for call in calls:
            try:
                answers(self.model, [call])
            except Exception:
                if call is first:
                    raise
                continue
            kept.append(call)
        return kept

    def differs(self, model: nn.Module) -> float:
        """Return how far a model's answers are from the first one's; infinity if it cannot answer."""
        try:
            return error(answers(model, self.calls), self.expected)
        except Exception:  # whatever a user's forward raises for a part that is gone
            return float("inf")

    def replace_with(self, model: nn.Module) -> bool:
        """Go on with a model that was folded in another precision; rounding may differ by that of its own.

        Returns:
            False if it differs by more, and nothing was done.
        """
        if self.differs(model) > ROUNDINGS * self.bound:
            return False
        self.model = model
        self.expected = answers(model, self.calls)
        return True

    def take(self, found: Found, into: Folded) -> int:
        """Apply all folds, or one by one where together they change an answer; return how many were kept."""
        into.kept.update(found.kept)
        folds = [each for each in found.folds if not self._left(each, into)]
        if not folds:
            return 0
        if self._tried(folds):
            into.folds += folds
            return len(folds)
        good = [each for each in folds if len(folds) > 1 and self._tried([each])]
        into.folds += good
        into.kept.update({each.path: "folding it changes an answer" for each in folds if each not in good})
        return len(good)

    def _left(self, each: Fold, into: Folded) -> bool:
        """Tell whether a place that a fold would change is to be left, and note why."""
        reasons = [reason for path in (each.path, *filter(None, each.into.split(", "))) if (reason := self.leave(path))]
        if reasons:
            into.kept[each.path] = reasons[0]
        return bool(reasons)

    def _tried(self, folds: Sequence[Fold]) -> bool:
        trial = copied(self.model)
        try:
            for each in folds:
                each.apply(trial)
        except (ValueError, RuntimeError, AttributeError, TypeError):
            return False
        found = self.differs(trial)
        if found > self.bound:
            return False
        self.model, self.worst = trial, max(self.worst, found)
        return True


def _fold_all(prover: _Prover, calls: Sequence[Call]) -> Folded:
    found = Folded(prover.model)
    flow = _flow(prover, calls)
    for _ in range(ROUNDS):
        before = len(found.folds)
        for search in SEARCHES:
            if prover.take(search(flow), found):
                flow = Flow.record(prover.model, prover.calls[0])
        others = cache(lambda: [Flow.record(prover.model, call) for call in prover.calls[1:3]])
        if prover.take(constants.find(flow, others), found):
            flow = Flow.record(prover.model, prover.calls[0])
        for search in (constants.find_unread, serving.find):
            if prover.take(search(flow), found):
                flow = Flow.record(prover.model, prover.calls[0])
        if len(found.folds) == before:
            break
    owners = {path for path, module in flow.modules.items() if next(module.parameters(recurse=False), None) is not None}
    found.unused = tuple(sorted(path for path in owners if path and not flow.calls[path] and not _read(flow, path)))
    gone = {each.path for each in found.folds}
    found.kept = {path: reason for path, reason in found.kept.items() if reason and path not in gone}
    return found


def _flow(prover: _Prover, calls: Sequence[Call]) -> Flow:
    """Return what flows in the first call. Raises TaskError if the next calls take other steps."""
    flows = [Flow.record(prover.model, call) for call in prover.calls[: max(2, len(calls))]]
    if not same_course(flows):
        raise TaskError("the model takes other steps for other inputs: nothing seen of one holds for the next")
    return flows[0]


def _read(flow: Flow, path: str) -> bool:
    return any(flow.users[value] for value, name in flow.held.items() if name.rpartition(".")[0] == path)


# -- precision ---------------------------------------------------------------------------------------------------
def _is_wide(model: nn.Module) -> bool:
    return any(parameter.dtype is torch.float64 for parameter in model.parameters())


@torch.no_grad()
def _widened(model: nn.Module, calls: Sequence[Call]) -> bool:
    """Make a copy float64 in place and say whether it still answers: some forwards insist on their own type."""
    _retype(model, lambda _name, tensor: tensor.double())
    try:
        answers(model, [_wide_call(calls[0])])
    except Exception:
        return False
    return True


def _wide_call(call: Call) -> Call:
    made: Call = mapped(call, lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)
    return made


def _narrowed(model: nn.Module, folds: Sequence[Fold], wide: nn.Module) -> nn.Module:
    """Return the model with the folds made again and the values of `wide`, rounded to the types of the model.

    What the wide copy noted while it ran, such as caches that are no buffers, is in float64 and stays behind.
    """
    kinds = {name: tensor.dtype for name, tensor in _named(model)}
    floats = [kind for kind in kinds.values() if kind.is_floating_point]
    common = max(set(floats), key=floats.count) if floats else torch.float32
    made = plainly_copied(model)
    for each in folds:
        each.apply(made)
    values = dict(_named(wide))
    _retype(made, lambda name, _tensor: values[name].detach().to(kinds.get(name, common)).clone())
    return made


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers by all of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


@torch.no_grad()
def _retype(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> None:
    """Change the type of all floats of a model; what shares a tensor goes on sharing it."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.data = change(name, parameter.data)
    made: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        for own, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                name = f"{path}.{own}" if path else own
                if id(buffer) not in made:
                    made[id(buffer)] = change(name, buffer)
                setattr(module, own, made[id(buffer)])


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode, and give each module back its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
