"""Devices by name, batches moved to them, and the state of their generators."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError, TaskError
from lessen.train.nested import map_tensors, tensors_of


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of a name such as `cpu`, `cuda`, `cuda:1`, `mps` or `xpu`.

    Raises:
        ConfigError: no such device is in this machine, or this build of torch does not know it.
    """
    try:
        device = torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise ConfigError(f"device {str(name)!r} is not there ({reason}); choose cpu or one of this machine") from error
    if device.type == "meta":
        raise ConfigError("device 'meta' holds no values; choose cpu or one of this machine")
    return device


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; of a model without any, the CPU."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def to_device(batch: Any, device: torch.device) -> Any:
    """Return `batch` with its tensors on `device`, nested as they are.

    A batch that is there already is given back itself. Tensors of the CPU are pinned on the way to CUDA, so that the
    copy runs beside the work of the device.
    """
    if all(tensor.device == device for tensor in tensors_of(batch)):
        return batch
    return map_tensors(batch, lambda tensor: _moved(tensor, device))


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.layout == torch.strided:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def generator_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the device's own generator by name; empty for the CPU, whose state others keep."""
    return {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}


def restore_generator(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Set what `generator_state` returned, where the device is of that kind."""
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def for_numpy(values: Tensor) -> Tensor:
    """Return values on the CPU in a type that numpy has: bfloat16 and float8, which it lacks, as float32."""
    values = values.detach().cpu()
    known = values.dtype in (torch.float64, torch.float32, torch.float16)
    return values if known or not values.is_floating_point() else values.float()


def as_rows(batches: Sequence[Tensor], what: str) -> Tensor:
    """Return the rows of all batches as one tensor that numpy can take.

    Raises:
        TaskError: a batch gives one number and no rows, or batches give rows of different shapes; `what` names them.
    """
    parts = [for_numpy(part) for part in batches]
    if any(part.dim() == 0 for part in parts):
        raise TaskError(f"{what}: a batch gives a single number; it must give one row an example")
    shapes = sorted({tuple(part.shape[1:]) for part in parts})
    if len(shapes) > 1:
        raise TaskError(f"{what}: rows of one batch have shape {list(shapes[0])}, of another {list(shapes[1])}")
    return torch.cat(parts)
