"""muP: a network whose best learning rate stays where it is when it grows wider.

parameter                     infinite sides   start              Adam's rate
matrix between wide layers    2                as torch has it    lr / r
readout, wide to fixed        1, its inputs    times r^-1/2       lr / r
bias of a wide layer's sum    1                times r^1/2        lr
input layer, norms            1, its outputs   as torch has it    lr
fixed                         0                as torch has it    lr

Tensor Programs V (arXiv 2203.03466); why it works: arXiv 2402.17457. The readout's multiplier 1 / r is folded into its
start and its rate, which is the same for Adam, so that the network is an ordinary one and is stored and exported as it
is. r is a parameter's width over that of the base. The sharpness is the largest eigenvalue of the loss's Hessian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError
from lessen.train.settings import ParameterGroup

MARK = "_width_scaled"


def ratio(name: str, parameter: Tensor, base: Tensor) -> tuple[str, float]:
    """Return (role, r) of a parameter: `matrix`, `readout`, `vector` or `fixed`, and its width over the base's.

    Weights are [out, in, ...], as torch's layers have them; of convolutions the channels are sides, not the taps.

    Raises:
        ConfigError: the two have another number of axes.
    """
    if parameter.ndim != base.ndim:
        raise ConfigError(
            f"muP: {name} has {parameter.ndim} axes, in the base {base.ndim}; the base is the same model, narrower"
        )
    grown = [axis for axis in range(min(2, parameter.ndim)) if parameter.shape[axis] != base.shape[axis]]
    if not grown:
        return "fixed", 1.0
    if parameter.ndim < 2 or 1 not in grown:
        return "vector", parameter.shape[0] / base.shape[0]
    return ("matrix" if 0 in grown else "readout"), parameter.shape[1] / base.shape[1]


def roles(model: nn.Module, base: nn.Module) -> dict[str, tuple[str, float]]:
    """Return the role and r of every parameter. Raises ConfigError where the models differ by more than width."""
    theirs = dict(base.named_parameters())
    own = dict(model.named_parameters())
    if own.keys() != theirs.keys():
        other = sorted(own.keys() ^ theirs.keys())[0]
        raise ConfigError(f"muP: {other} is in one of the two models only; the base is the same model, narrower")
    return {name: ratio(name, parameter, theirs[name]) for name, parameter in own.items()}


def rescale(model: nn.Module, base: nn.Module) -> None:
    """Bring a freshly built model's readouts and wide biases to their start under muP, in place, once.

    Raises:
        ConfigError: it was done already, or the models differ by more than width.
    """
    if getattr(model, MARK, False):
        raise ConfigError("muP: this model was rescaled already; twice would shrink its readout again")
    found = roles(model, base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            role, width = found[name]
            weight = found.get(f"{name.removesuffix('bias')}weight", ("fixed", 1.0))
            if role == "readout":
                parameter.mul_(width**-0.5)
            elif name.endswith("bias") and weight[0] in ("matrix", "readout"):  # torch draws it by the width of inputs
                parameter.mul_(weight[1] ** 0.5)
    setattr(model, MARK, True)


def groups(model: nn.Module, base: nn.Module) -> list[ParameterGroup]:
    """Return groups for `fit(parameters=...)` with Adam or AdamW: matrices and readouts at lr / r, the rest at lr.

    Decoupled weight decay of the former is lr / r times the decay, as elsewhere; give it in proportion if it shall not
    fall.
    """
    found = roles(model, base)
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        role, width = found[name]
        by_factor.setdefault(1 / width if role in ("matrix", "readout") else 1.0, []).append(parameter)
    return [ParameterGroup(parameters, factor=factor) for factor, parameters in sorted(by_factor.items())]


def sharpness(
    loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter], generator: torch.Generator, steps: int = 20
) -> float:
    """Return the largest eigenvalue of the Hessian of a loss, in size, by power iteration.

    Args:
        loss: the loss on a fixed batch, without dropout and with batch norm in eval mode, or noise is measured.
        steps: products with the Hessian.
    """
    own = [p for p in parameters if p.requires_grad]
    slopes = torch.autograd.grad(loss(), own, create_graph=True)
    vector = [torch.randn(p.shape, generator=generator).to(p) for p in own]
    value = 0.0
    for _ in range(steps):
        size = torch.sqrt(sum((v.square().sum() for v in vector), torch.zeros(())))
        vector = [v / size for v in vector]
        dot = sum(((s * v).sum() for s, v in zip(slopes, vector, strict=True)), torch.zeros(()))
        after = torch.autograd.grad(dot, own, retain_graph=True, allow_unused=True)
        product = [torch.zeros_like(v) if a is None else a for a, v in zip(after, vector, strict=True)]
        value = float(sum((p * v).sum() for p, v in zip(product, vector, strict=True)))
        if not any(bool(p.any()) for p in product):
            return 0.0
        vector = product
    return value
