"""Features of two models brought into one form: which layer, which axes, which width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.train.device import device_of, to_device
from lessen.train.taps import INPUT
from lessen.train.teachers import evaluating


@torch.no_grad()
def penultimate(model: nn.Module, forward: Callable[[nn.Module, Any], Tensor], batch: Any) -> str:
    """Return the tap of the features before the head: the input of the linear layer that runs last.

    Raises:
        TaskError: no linear layer runs.
    """
    called: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, _inputs, path=path: called.append(path))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path
    ]
    try:
        with evaluating(model):
            forward(model, to_device(batch, device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        raise TaskError(f"{type(model).__name__} runs no linear layer before its answer; name the layer to compare")
    return called[-1] + INPUT


def matched(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both features in the form that they share: maps of the smaller size, tokens, or one vector an example.

    Maps are [B, C, H, W], tokens [B, N, C], vectors [B, C]; widths may differ. Two maps are averaged over cells down to
    the smaller height and width; tokens stay where both have equally many; anything else is averaged over its places.
    """
    if student.ndim == teacher.ndim == 4:
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
    if student.ndim == teacher.ndim == 3 and student.shape[1] == teacher.shape[1]:
        return student, teacher
    return vectors(student), vectors(teacher)


def vectors(features: Tensor) -> Tensor:
    """Return one vector an example, [B, C], the mean over cells or tokens."""
    if features.ndim == 4:
        return features.mean(dim=(2, 3))
    return features.mean(dim=1) if features.ndim == 3 else features


class Regressor(nn.Module):
    """A linear map of the width, at every place: [B, C, H, W], [B, N, C] or [B, C] to width D.

    Args:
        student, teacher: features of the same form, see `matched`.
    """

    def __init__(self, student: Tensor, teacher: Tensor) -> None:
        super().__init__()
        axis = 1 if student.ndim == 4 else -1
        self.maps = student.ndim == 4
        self.linear = nn.Linear(student.shape[axis], teacher.shape[axis])

    def forward(self, features: Tensor) -> Tensor:
        """Return the mapped features."""
        if self.maps:
            return torch.as_tensor(self.linear(features.movedim(1, -1))).movedim(-1, 1)
        return torch.as_tensor(self.linear(features))
