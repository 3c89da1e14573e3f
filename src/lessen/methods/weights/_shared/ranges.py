"""The range of what goes into a layer, seen on calibration data in two passes and constant memory a layer.

minmax        from the least to the greatest input
percentile    without the rarest inputs at either end
mse           both ends moved towards zero as far as the squared error of rounding to 256 levels falls
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.errors import NonFiniteError
from lessen.methods.calibration import run_through, watching
from lessen.methods.sites import Site
from lessen.methods.weights._shared.curvature import given_to
from lessen.task import Task

InputRanges = Literal["minmax", "percentile", "mse"]
BINS = 2048
LEVELS = 255
SHARES = tuple(1 - step / 64 for step in range(60))


def input_ranges(
    model: nn.Module, task: Task, sites: Sequence[Site], batches: int, how: InputRanges, percentile: float
) -> list[tuple[float, float] | None]:
    """Return (low, high) of the inputs of each site, zero inside; None where calibration brought none.

    Args:
        percentile: share of inputs, in percent, that lie below the upper end, and above the lower one.

    Raises:
        TaskError: the train split is empty.
        NonFiniteError: an input is NaN or infinite; names the layer.
    """
    ends = _watched(model, task, sites, batches, lambda _: torch.zeros(2), _widen)
    seen = [None if end is None else (float(end[0]), float(end[1])) for end in ends]
    if how == "minmax":
        return seen

    def count(number: int) -> Callable[[Tensor, Tensor], None]:
        low, high = seen[number] or (0.0, 0.0)

        def take(rows: Tensor, into: Tensor) -> None:
            into += torch.histc(rows, BINS, low, high if high > low else low + 1.0)

        return take

    counted = _watched(model, task, sites, batches, lambda _: torch.zeros(BINS), count)
    pick = _without_tails if how == "percentile" else _least_error
    return [
        None if end is None or bins is None else pick(bins.double().cpu(), *end, percentile)
        for end, bins in zip(seen, counted, strict=True)
    ]


def _watched(
    model: nn.Module, task: Task, sites: Sequence[Site], batches: int, empty: Callable[[int], Tensor],
    taker: Callable[[int], Callable[[Tensor, Tensor], None]],
) -> list[Tensor | None]:  # fmt: skip
    """Return what each site's taker made of its inputs, or None where there were none."""
    found: list[Tensor | None] = [None] * len(sites)

    def hook_of(number: int) -> Callable[..., None]:
        take = taker(number)

        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            rows = given_to(arguments, keywords).detach().float().reshape(-1)
            if not bool(torch.isfinite(rows).all()):
                raise NonFiniteError(f"{sites[number].path} was given NaN or infinity; clean the train split first")
            into = found[number]
            into = empty(number).to(rows.device) if into is None else into
            take(rows, into)
            found[number] = into

        return hook

    with watching([(site.module, hook_of(number)) for number, site in enumerate(sites)]):
        run_through(model, task, batches)
    return found


def _widen(_number: int) -> Callable[[Tensor, Tensor], None]:
    def take(rows: Tensor, into: Tensor) -> None:
        low, high = rows.aminmax()
        into[0], into[1] = torch.minimum(into[0], low), torch.maximum(into[1], high)

    return take


def _without_tails(bins: Tensor, low: float, high: float, percentile: float) -> tuple[float, float]:
    """Return the ends beyond which less than 100 - percentile percent of the inputs lie."""
    width, share = (high - low) / BINS, bins.cumsum(0) / bins.sum().clamp(min=1)
    upper = int(torch.searchsorted(share, torch.tensor(percentile / 100, dtype=share.dtype)))
    lower = int(torch.searchsorted(share, torch.tensor(1 - percentile / 100, dtype=share.dtype)))
    return min(0.0, low + lower * width), max(0.0, low + min(upper + 1, BINS) * width)


def _least_error(bins: Tensor, low: float, high: float, _percentile: float) -> tuple[float, float]:
    """Return the range, a share of the whole, whose levels err least on the inputs that were counted."""
    middles = low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * (high - low) / BINS
    best, least = (low, high), float("inf")
    for share in SHARES:
        start, end = low * share, high * share
        step = (end - start) / LEVELS or 1.0
        error = float(bins @ (middles.clamp(start, end).div(step).round() * step - middles).square())
        if error < least:
            best, least = (start, end), error
    return best
