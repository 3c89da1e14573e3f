"""Devices by name, batches moved to them, and the state of their generators."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError
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
