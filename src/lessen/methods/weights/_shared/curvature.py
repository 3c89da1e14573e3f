"""What calibration says of linear layers: how much squared outputs, or a loss, bend when weights move.

input     the sum of x x^T over rows x that go in: what outputs of the layer feel (GPTQ, arXiv 2210.17323)
output    the sum of G^T G over units of calibration, G = dL/dW of the whole unit: what the loss feels (OAC, arXiv
          2405.15025). A unit is what the first dimension of inputs counts: a sequence of [units, tokens, in], or a row
          of [units, in].
tokens    the sum of |g|^2 x x^T over tokens, g being the loss's slope at the layer's output for input x (GuidedQuant,
          Kim et al., ICML 2025, arXiv 2505.07004, with all outputs in one group): tokens count as independent.

Sums and not means: a factor of the curvature changes no solution, as damping is relative to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.errors import NonFiniteError
from lessen.methods.calibration import watching
from lessen.methods.sites import Site

Hessian = Literal["input", "output", "tokens"]


class Curvature:
    """A sum of outer products, float32 [in, in]."""

    def __init__(self, path: str, layer: Any) -> None:
        self.path = path
        self.count = 0
        """Rows that went in, or units whose gradient was seen."""
        self.total = torch.zeros(layer.in_features, layer.in_features, device=layer.weight.device)

    def add(self, inputs: Tensor) -> None:
        """Take inputs [*, in] in. Raises NonFiniteError, which names the layer."""
        rows = self._finite(inputs.reshape(-1, inputs.shape[-1]), "calibration data gave NaN or infinity to")
        self.total.addmm_(rows.t(), rows)
        self.count += len(rows)

    def add_gradients(self, inputs: Tensor, slopes: Tensor, apart: bool = False) -> None:
        """Take inputs [units, *, in] in with the slopes of the loss along outputs [units, *, out].

        The tokens of a unit are summed before the square is taken, unless they stand `apart`. Raises NonFiniteError,
        which names the layer.
        """
        inputs = self._finite(inputs, "calibration data gave NaN or infinity to")
        slopes = self._finite(slopes, "the loss has a slope of NaN or infinity at")
        if apart or inputs.ndim < 3:  # units of one row: G^T G = |slope|^2 x x^T
            rows = inputs.reshape(-1, inputs.shape[-1])
            rows = rows * slopes.reshape(-1, slopes.shape[-1]).norm(dim=1, keepdim=True)
            self.total.addmm_(rows.t(), rows)
            self.count += len(rows)
            return
        for rows, slope in zip(inputs.flatten(1, -2), slopes.flatten(1, -2), strict=True):
            gradient = slope.t() @ rows
            self.total.addmm_(gradient.t(), gradient)
            self.count += 1

    def _finite(self, values: Tensor, what: str) -> Tensor:
        values = values.detach().float()
        if not bool(torch.isfinite(values).all()):
            raise NonFiniteError(f"{what} {self.path}; clean the train split first")
        return values


def sharing(sites: Sequence[Site], run: Callable[[], Any], again: set[str] | None = None) -> list[list[Site]]:
    """Return the layers in the order in which one forward calls them, those that are given one tensor together.

    Queries, keys and values are such a set, gate and up are another. Layers that this forward does not call come last,
    each by itself.

    Args:
        again: takes the paths of layers that this forward calls more than once.
    """
    sets: list[tuple[Tensor, list[Site]]] = []  # holding the tensors keeps them apart

    def hook_of(site: Site) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = given_to(arguments, keywords)
            if any(site in members for _, members in sets):
                if again is not None:
                    again.add(site.path)
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


class _Shown(BaseException):
    """Ends a forward that has shown all that is asked of it; no host catches it."""


def ending_early(sets: Sequence[Sequence[Site]], calls: Sequence[Callable[[], Any]]) -> Callable[[], None]:
    """Return a run of `calls` that ends each of them when the first layer of every set was called, for `curvatures`.

    What comes after that layer in a block is nobody's business, and is most of the work. A call that leaves a layer
    out runs to its end. Each layer must be called at most once in a forward.
    """

    def run() -> None:
        for call in calls:
            left = {members[0].path for members in sets}

            def hook_of(path: str, left: set[str] = left) -> Callable[..., None]:
                def hook(_module: nn.Module, _arguments: tuple[Any, ...], _keywords: dict[str, Any]) -> None:
                    left.discard(path)
                    if not left:
                        raise _Shown

                return hook

            with watching([(members[0].module, hook_of(members[0].path)) for members in sets]), suppress(_Shown):
                call()

    return run


def curvatures(sets: Sequence[Sequence[Site]], run: Callable[[], Any]) -> list[Curvature]:
    """Return the input curvature of the first layer of each set over all that `run` sends through it."""
    found = [Curvature(members[0].path, members[0].module) for members in sets]

    def hook_of(into: Curvature) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            into.add(given_to(arguments, keywords))

        return hook

    hooks = [(members[0].module, hook_of(into)) for members, into in zip(sets, found, strict=True)]
    with watching(hooks), torch.no_grad():
        run()
    return found


def output_curvatures(sites: Sequence[Site], run: Callable[[], Any], apart: bool = False) -> list[Curvature]:
    """Return the output curvature of each layer over all backward passes that `run` makes (see `slopes`).

    Args:
        apart: tokens stand apart (`tokens`), in place of being summed to the gradient of their unit (`output`).
    """
    found = [Curvature(site.path, site.module) for site in sites]

    def hook_of(into: Curvature) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if output.requires_grad:
                given = given_to(arguments, keywords).detach()
                output.register_hook(lambda slopes: into.add_gradients(given, slopes, apart))

        return hook

    hooks = [(site.module, hook_of(into)) for site, into in zip(sites, found, strict=True)]
    with watching(hooks, outputs=True):
        run()
    return found


def given_to(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    """Return what a linear layer is called with."""
    given: Tensor = arguments[0] if arguments else keywords["input"]
    return given
