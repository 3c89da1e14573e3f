"""What calibration inputs say of linear layers: the second moment of what goes in, and which layers share an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import NonFiniteError
from lessen.methods.calibration import watching
from lessen.methods.sites import Site


class Curvature:
    """The mean of x x^T over rows x that go into a layer, float32 [in, in]."""

    def __init__(self, path: str, layer: Any) -> None:
        self.path = path
        self.rows = 0
        self._sum = torch.zeros(layer.in_features, layer.in_features, device=layer.weight.device)

    def add(self, inputs: Tensor) -> None:
        """Take inputs [*, in] in. Raises NonFiniteError, which names the layer."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        if not bool(torch.isfinite(rows).all()):
            raise NonFiniteError(f"calibration data gave NaN or infinity to {self.path}; clean the train split first")
        self._sum.addmm_(rows.t(), rows)
        self.rows += len(rows)

    @property
    def mean(self) -> Tensor:
        """The mean, all zero where nothing came in."""
        return self._sum / max(self.rows, 1)


def sharing(sites: Sequence[Site], run: Callable[[], Any]) -> list[list[Site]]:
    """Return the layers in the order in which one forward calls them, those that are given one tensor together.

    Queries, keys and values are such a set, gate and up are another. Layers that this forward does not call come last,
    each by itself.
    """
    sets: list[tuple[Tensor, list[Site]]] = []  # holding the tensors keeps them apart

    def hook_of(site: Site) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = _given(arguments, keywords)
            if any(site in members for _, members in sets):
                return
            same = next((members for tensor, members in sets if tensor is given), None)
            if same is None:
                sets.append((given, [site]))
            else:
                same.append(site)

        return hook

    with watching([(site.module, hook_of(site)) for site in sites]), torch.no_grad():
        run()
    called = [members for _, members in sets]
    return called + [[site] for site in sites if not any(site in members for members in called)]


def curvatures(sets: Sequence[Sequence[Site]], run: Callable[[], Any]) -> list[Curvature]:
    """Return the curvature of the first layer of each set over all that `run` sends through it."""
    found = [Curvature(members[0].path, members[0].module) for members in sets]

    def hook_of(into: Curvature) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            into.add(_given(arguments, keywords))

        return hook

    hooks = [(members[0].module, hook_of(into)) for members, into in zip(sets, found, strict=True)]
    with watching(hooks), torch.no_grad():
        run()
    return found


def _given(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    given: Tensor = arguments[0] if arguments else keywords["input"]
    return given
