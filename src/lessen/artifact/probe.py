"""A probe: one batch of inputs and the outputs that the model gave for it when it was saved."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lessen.artifact.structure import refusing
from lessen.errors import ArtifactError
from lessen.task import call_model

TOLERANCE = 1e-5
"""Share of the largest output by which outputs may differ on another machine; more for coarser types."""


def record(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Return the tensors of a probe: `inputs` (tensor, tuple or dict of tensors) and what `model` gives for them."""
    found = {f"input.{key}": value.contiguous() for key, value in _flatten(inputs).items()}
    with torch.no_grad():
        return {**found, "output": call_model(model, inputs).contiguous()}


def run(model: nn.Module, tensors: Mapping[str, Tensor], where: str, written_with: str) -> float:
    """Call `model` on the inputs of a probe and return the largest difference to the outputs that it holds.

    Raises:
        ArtifactError: it is no probe, the model cannot be called with it, or outputs differ by more than rounding.
    """
    if "output" not in tensors or set(tensors) == {"output"}:
        raise ArtifactError(f"{where}: the probe holds no {'inputs' if 'output' in tensors else 'outputs'}")
    with refusing(f"{where}: the model cannot be called with the recorded inputs"), torch.no_grad():
        output = call_model(model, _unflatten(tensors))
    expected = tensors["output"]
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
    if isinstance(inputs, Mapping):
        items = {f"name.{key}": value for key, value in inputs.items()}
    else:
        items = {f"position.{number}": value for number, value in enumerate(inputs)}
    for key, value in items.items():
        if not isinstance(value, Tensor):
            raise ArtifactError(f"probe input {key} is a {type(value).__name__}; only tensors can be recorded")
    return items


def _unflatten(tensors: Mapping[str, Tensor]) -> Any:
    inputs = {key[len("input.") :]: value for key, value in tensors.items() if key.startswith("input.")}
    if "tensor" in inputs:
        return inputs["tensor"]
    if all(key.startswith("name.") for key in inputs):
        return {key[len("name.") :]: value for key, value in inputs.items()}
    return tuple(inputs[f"position.{number}"] for number in range(len(inputs)))
