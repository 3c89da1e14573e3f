"""Checks of what a method does to a model: finite, minimal, repeatable, savable, and honest about bytes."""

from __future__ import annotations

import copy
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lessen.artifact import folder as artifact
from lessen.errors import LessenError, NonFiniteError, NothingMatchedError, TaskError
from lessen.measure.record import count_macs
from lessen.methods.sites import state_bytes
from lessen.stored.base import StoredModule, StoredPatch
from lessen.testing.case import Case, NotApplicable, Recorded, expect, same_state, snapshot


def refuses_non_finite(case: Case) -> None:
    """NaN or infinity in a weight is refused, and the weight is named."""
    for value in (float("nan"), float("inf")):
        broken = copy.deepcopy(case.model)
        floating = [(n, p) for n, p in broken.named_parameters() if p.is_floating_point() and p.numel()]
        if not floating:
            raise NotApplicable("the model has no floating-point parameter")
        name, parameter = floating[0]
        with torch.no_grad():
            parameter.view(-1)[0] = value
        try:
            case.apply(broken)
        except NonFiniteError as error:
            expect(name in str(error), f"the refusal does not name {name!r}: {error}")
        else:
            expect(False, f"{value} in {name!r} was accepted")


def nothing_matched_is_an_error(case: Case) -> None:
    """A model with nothing to act on, even an empty one, gives NothingMatchedError that names the method."""
    if not case.method.card.module_types and "blocks" not in case.method.card.acts_on:
        raise NotApplicable("the card names no part of a model")
    knobs: dict[str, None] = {name: None for name in ("only", "skip") if name in type(case.method).model_fields}
    method = case.method.model_copy(update=knobs)  # a pattern that matches no path is another error
    for model in (nn.Sequential(nn.Tanh()), nn.Module()):
        try:
            method.apply(model.eval(), case.task, _context())
        except NothingMatchedError as error:
            expect(case.method.card.name in str(error), f"the error does not name the method: {error}")
        else:
            expect(False, f"a {type(model).__name__} without anything to act on was accepted")


def callers_model_is_untouched(case: Case) -> None:
    """The model handed in keeps its tensors bit for bit, its modules, flags and hooks."""
    model = copy.deepcopy(case.model)
    before = snapshot(model)
    case.apply(model)
    after = snapshot(model)
    difference = same_state(before["tensors"], after["tensors"])
    expect(difference is None, f"the caller's model was changed: {difference}")
    expect(before["modules"] == after["modules"], "modules, training flags or hooks of the caller's model were changed")
    expect(before["flags"] == after["flags"], "requires_grad of the caller's parameters was changed")


def batches_are_untouched(case: Case) -> None:
    """The task's batches are not written into."""
    recorded = Recorded(case.task)
    case.apply(case.model, task=recorded)
    changed = recorded.changed()
    expect(changed is None, f"the batches of the {changed} split were written into")


def same_seed_same_result(case: Case) -> None:
    """Two applications under one seed give the same state bit for bit."""
    again, _ = case.apply(case.model)
    difference = same_state(dict(case.result.state_dict()), dict(again.state_dict()))
    expect(difference is None, f"two applications under one seed differ: {difference}")


def globals_are_untouched(case: Case) -> None:
    """Random states, threads, grad mode and dtype of the process are as before."""
    before = _globals()
    case.apply(case.model)
    for name, value in _globals().items():
        expect(value == before[name], f"{name} of the process was changed")


def leaves_no_hooks(case: Case) -> None:
    """The result carries no more hooks than the model it came from, but those of a patch that an artifact records."""
    if any(isinstance(module, StoredPatch) for module in case.result.modules()):
        raise NotApplicable("a stored patch says what is in place")
    expect(_hooks(case.result) <= _hooks(case.model), "hooks were left on the model")


def outputs_are_sound(case: Case) -> None:
    """The compact model gives finite outputs of the reference's shape and type; so does a deep copy, bit for bit."""
    reference, found = case.outputs(case.model), case.outputs(case.result)
    expect(found.shape == reference.shape, f"outputs have shape {tuple(found.shape)}, not {tuple(reference.shape)}")
    expect(found.dtype == reference.dtype, f"outputs are {found.dtype}, not {reference.dtype}")
    expect(bool(torch.isfinite(found).all()), "outputs hold NaN or infinity")
    expect(torch.equal(case.outputs(copy.deepcopy(case.result)), found), "a deep copy gives other outputs")


def twice_finds_nothing_or_changes_nothing(case: Case) -> None:
    """A second application is refused as NothingMatchedError, or changes no bit of the state."""
    card = case.method.card
    if card.claims == {"quality"} or (not card.claims and "training" in card.needs):
        raise NotApplicable("the method makes nothing smaller: to learn twice is to learn more")
    try:
        again, _ = case.apply(case.result)
    except NothingMatchedError:
        return
    difference = same_state(dict(case.result.state_dict()), dict(again.state_dict()))
    expect(difference is None, f"a second application was accepted and changed the model: {difference}")


def saves_and_loads_bit_for_bit(case: Case) -> None:
    """An artifact gives back the same tensors and outputs."""
    with torch.random.fork_rng(devices=[]):
        base = case.task.build()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "artifact"
        artifact.save(path, case.result, base)
        loaded = artifact.load(path, model=base)
    difference = same_state(dict(case.result.state_dict()), dict(loaded.state_dict()))
    expect(difference is None, f"an artifact does not give back the state: {difference}")
    expect(torch.equal(case.outputs(loaded), case.outputs(case.result)), "a loaded artifact gives other outputs")


def stored_modules_have_twins(case: Case) -> None:
    """Each stored module is rebuilt from its JSON configuration with tensors of the same names, shapes and types."""
    modules = [module for module in case.result.modules() if isinstance(module, StoredModule)]
    if not modules:
        raise NotApplicable("the method leaves no stored module")
    for module in modules:
        if any(isinstance(inner, StoredModule) for inner in list(module.modules())[1:]):
            continue  # its inside was compressed again; the artifact check covers it
        config = json.loads(json.dumps(module.config(), allow_nan=False))
        twin = type(module).from_config(config)
        own, other = module.state_dict(), twin.state_dict()
        expect(list(own) == list(other), f"{module.kind}: the twin has other tensors: {list(other)}")
        for name, tensor in own.items():
            same = tensor.shape == other[name].shape and tensor.dtype == other[name].dtype
            expect(same, f"{module.kind}: {name} of the twin has another shape or type")


def claims_only_what_it_saves(case: Case) -> None:
    """Claimed bytes are fewer on disk and in the state; claimed multiply-adds are fewer in one forward."""
    claims = case.method.card.claims
    if "bytes" in claims:
        with torch.random.fork_rng(devices=[]):
            base = case.task.build()
        small, large = artifact.stored_size(case.result, base), artifact.stored_size(case.model, base)
        expect(small < large, f"claims bytes, but an artifact takes {small} bytes, the reference {large}")
        held, before = state_bytes(case.result), state_bytes(case.model)
        expect(held < before, f"claims bytes, but the state holds {held} bytes, the reference {before}")
    if "macs" in claims:
        small_macs, large_macs = count_macs(case.task, case.result), count_macs(case.task, case.model)
        if small_macs is not None and large_macs is not None:
            expect(small_macs < large_macs, f"claims multiply-adds, but does {small_macs}, the reference {large_macs}")


def missing_needs_are_named(case: Case) -> None:
    """A task that lacks something the card needs is refused by name."""
    for need in sorted(case.method.card.needs):
        task = case.task.view(withheld=frozenset({need}))
        try:
            case.apply(case.model, task=task)
        except TaskError as error:
            expect(need in str(error), f"the refusal does not name {need!r}: {error}")
        else:
            expect(False, f"needs {need!r}, but ran on a task without it")


def empty_training_data_is_refused(case: Case) -> None:
    """A method that needs training or calibration refuses a task whose train split is empty."""
    if not set(case.method.card.needs) & {"training", "calibration"}:
        raise NotApplicable("the method reads no training data")
    task = case.task.view(batches=lambda split, seed=0: () if split == "train" else case.task.batches(split, seed))
    try:
        case.apply(case.model, task=task)
    except LessenError as error:
        expect("\n" not in str(error), f"the refusal is not one line: {error}")
    else:
        expect(False, "an empty train split was accepted")


def findings_are_json(case: Case) -> None:
    """What the step recorded is JSON."""
    for record in case.applied[1]:
        try:
            json.dumps(record.findings, allow_nan=False)
        except (TypeError, ValueError) as error:
            expect(False, f"findings are not JSON: {error}")


def training_is_accounted(case: Case) -> None:
    """A method that needs training reports the seconds it trained; one without training reports none."""
    seconds = case.applied[1][0].train_seconds
    if "training" in case.method.card.needs:
        expect(seconds > 0, "the card needs training, but context.train_seconds is 0")
    total = case.applied[1][0].seconds
    expect(seconds <= total + 0.05, f"train_seconds {seconds:.2f} exceed the seconds of the step {total:.2f}")


def refuses_hostile_configurations(case: Case) -> None:
    """Sizes in a stored configuration that are negative, huge, or no numbers raise ValueError or TypeError."""
    for module in case.result.modules():
        if not isinstance(module, StoredModule):
            continue
        config = module.config()
        for key, value in config.items():
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            for bad in (-1, 2**62, "7", 1.5):
                try:
                    with torch.device("meta"):
                        type(module).from_config({**config, key: bad})
                except (ValueError, TypeError):
                    continue
                expect(key == "padding_idx", f"{module.kind} accepts {key} = {bad!r}")


def _globals() -> dict[str, Any]:
    return {
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": repr(np.random.get_state()),
        "python's random state": random.getstate(),
        "the thread count": torch.get_num_threads(),
        "the grad mode": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def _context() -> Any:
    from lessen.method import Context

    return Context(seed=0)


def survives(case: Case, model: nn.Module) -> nn.Module | None:
    """Apply to an odd model: None when refused by name, else the result, whose outputs must be finite."""
    try:
        result, _ = case.apply(model)
    except LessenError:
        return None
    found = case.outputs(result)
    expect(bool(torch.isfinite(found).all()), "outputs hold NaN or infinity")
    return result
