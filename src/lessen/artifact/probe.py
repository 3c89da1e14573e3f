"""A probe: one batch of inputs and the outputs that the model gave for it when it was saved."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lessen import files
from lessen.artifact.fit import refusing
from lessen.errors import ArtifactError
from lessen.task import Task, call_model
from lessen.train.device import device_of, to_device
from lessen.usercode import boundary

TOLERANCE = 1e-5
"""Share of the largest output by which outputs may differ on another machine; more for coarser types."""
LAYOUT = "layout"
"""Of nested inputs: how they are put together, as JSON."""


def record(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Return the tensors of a probe: `inputs`, nested as the model takes them, and what `model` gives for them.

    Raises:
        ArtifactError: an input is neither a tensor nor a plain value.
        InputError: the model cannot be called with them.
        TaskError: the model returns no tensor that can be named, see `main_tensor`.
    """
    found = {f"input.{key}": value.cpu().contiguous() for key, value in _flatten(inputs).items()}
    with torch.no_grad():
        what = f"{type(model).__name__} cannot be called with the inputs to record"
        with boundary(what):
            output = call_model(model, inputs)
        return {**found, "output": output.cpu().contiguous()}


def run(model: nn.Module, tensors: Mapping[str, Tensor], where: str, written_with: str) -> float:
    """Call `model` on the inputs of a probe and return the largest difference to the outputs that it holds.

    Raises:
        ArtifactError: it is no probe, the model cannot be called with it, or outputs differ by more than rounding.
    """
    if "output" not in tensors or set(tensors) == {"output"}:
        raise ArtifactError(f"{where}: the probe holds no {'inputs' if 'output' in tensors else 'outputs'}")
    with refusing(f"{where}: the model cannot be called with the recorded inputs"), torch.no_grad():
        output = call_model(model, _unflatten(tensors))
    return compared(output, tensors["output"], where, written_with)


def inputs_for(task: Task, model: nn.Module) -> Any:
    """Return the inputs to record with `model`, or None where the task calls it in a way of its own.

    Found out before any work: what this returns can be saved.

    Raises:
        ArtifactError, TaskError: the inputs or the outputs cannot be recorded, see `record`.
    """
    inputs = task.inputs(to_device(task.example_batch(), device_of(model)))
    try:
        first, again = (record(model, inputs)["output"] for _ in range(2))
    except Exception:
        if type(task).forward is Task.forward and "forward" not in vars(task):
            raise
        return None
    try:
        compared(again, first, "", "")
    except ArtifactError as error:
        raise ArtifactError(
            f"{type(model).__name__} does not answer one input twice alike in eval mode, so that nothing measured on "
            "it could be found again; take out dropout that stays on, and what draws or counts in its forward"
        ) from error
    return inputs


def compared(output: Tensor, expected: Tensor, where: str, written_with: str) -> float:
    """Return the largest difference of outputs to those expected. Raises ArtifactError beyond rounding."""
    if (output.shape, output.dtype) != (expected.shape, expected.dtype):
        forms = [f"{list(one.shape)} {str(one.dtype).removeprefix('torch.')}" for one in (output, expected)]
        raise ArtifactError(f"{where}: the model gives outputs of {forms[0]}, {forms[1]} were recorded")
    difference, scale = _compare(output, expected)
    allowed = TOLERANCE if not expected.dtype.is_floating_point else max(TOLERANCE, 4 * torch.finfo(expected.dtype).eps)
    if not difference <= allowed * scale:
        raise ArtifactError(
            f"{where}: outputs differ from the recorded ones by {difference:.3g}; "
            f"it was written with torch {written_with}, this is {torch.__version__} on {platform.machine()}"
        )
    return difference


def _compare(output: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the largest difference and the scale it is judged by; equal infinities and NaN are no difference."""
    if not output.numel():
        return 0.0, 1.0
    found, wanted = (side.to(torch.complex128 if side.is_complex() else torch.float64) for side in (output, expected))
    alike = (found == wanted) | (found.isnan() & wanted.isnan())
    difference = float(torch.where(alike, 0.0, (found - wanted).abs()).max())
    finite = wanted.abs().nan_to_num(0.0, 0.0, 0.0)
    return difference, max(1.0, float(finite.max()))


def _flatten(inputs: Any) -> dict[str, Tensor]:
    if isinstance(inputs, Tensor):
        return {"tensor": inputs}
    named = isinstance(inputs, Mapping)
    if (named and all(isinstance(key, str) for key in inputs)) or type(inputs) is tuple:
        items = inputs.items() if named else enumerate(inputs)
        flat = {f"{'name' if named else 'position'}.{key}": value for key, value in items}
        if flat and all(isinstance(value, Tensor) for value in flat.values()):
            return flat
    leaves: list[Tensor] = []
    layout = files.dump_json(_layout(inputs, leaves)).encode()
    found = {f"leaf.{number}": tensor for number, tensor in enumerate(leaves)}
    return {**found, LAYOUT: torch.frombuffer(bytearray(layout), dtype=torch.uint8)}


def _layout(value: Any, leaves: list[Tensor]) -> Any:
    """Return nested inputs as JSON, each tensor by its number in `leaves`. Raises ArtifactError for other objects."""
    if isinstance(value, Tensor):
        leaves.append(value)
        return {"tensor": len(leaves) - 1}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_layout(item, leaves) for item in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _layout(item, leaves) for key, item in value.items()}}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    raise ArtifactError(
        f"the model's inputs hold a {type(value).__name__}; tensors, numbers, words, and lists, tuples and dicts of "
        "them can be recorded"
    )


def _unflatten(tensors: Mapping[str, Tensor]) -> Any:
    inputs = {key[len("input.") :]: value for key, value in tensors.items() if key.startswith("input.")}
    if LAYOUT in inputs:
        layout = files.parse_json(bytes(inputs[LAYOUT].flatten().tolist()), "the layout of the inputs")
        return _restored(layout, inputs)
    if "tensor" in inputs:
        return inputs["tensor"]
    if all(key.startswith("name.") for key in inputs):
        return {key[len("name.") :]: value for key, value in inputs.items()}
    return tuple(inputs[f"position.{number}"] for number in range(len(inputs)))


def _restored(layout: Any, inputs: Mapping[str, Tensor]) -> Any:
    ((kind, value),) = layout.items()
    if kind == "tensor":
        return inputs[f"leaf.{value}"]
    if kind == "dict":
        return {key: _restored(item, inputs) for key, item in value.items()}
    if kind == "value":
        return value
    items = [_restored(item, inputs) for item in value]
    return tuple(items) if kind == "tuple" else items
