"""Moving scales between layers: inputs divided by what makes them, weights multiplied, and outputs as they were.

    norm ──┬─> q, k, v      the norm's gain (and bias) is divided
    v ─────── attention ──> o        rows of v are divided: attention mixes tokens, not channels
    up ────── gate * ─────> down     rows of up are divided

Whether the division passes through exactly is not asked of names but tried: a block must answer as it did before, else
all is put back and the division stays in front of the layer, as a `ScaledInput`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.norms import is_norm
from lessen.architectures.parts import Attention, Block, Part
from lessen.methods.calibration import watching
from lessen.methods.sites import Site, replace
from lessen.methods.weights._shared.curvature import given_to
from lessen.stored.linears.scaled_input import ScaledInput

LEAST = 2.0**-8
"""Least factor of an input, and the inverse of the greatest: well inside of what fp16 holds to three digits."""
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-8}
CLOSE_16_BIT = 2e-2


@dataclass(frozen=True)
class Source:
    """What makes the inputs of some layers: a norm, or rows of a linear layer."""

    part: Part
    rows: Tensor | None = None
    """The row that makes each input, int64 [in]; several inputs may come from one row. None: a norm."""

    def tied(self, scales: Tensor) -> Tensor:
        """Return scales [in] that are equal, by their geometric mean, where inputs come from one row."""
        if self.rows is None:
            return scales
        total = torch.zeros(int(self.rows.max()) + 1, dtype=scales.dtype, device=scales.device)
        rows = self.rows.to(scales.device)
        counts = total.index_add(0, rows, torch.ones_like(scales))
        mean = total.index_add(0, rows, scales.log()) / counts.clamp(min=1)
        return mean[rows].exp()

    @torch.no_grad()
    def divide(self, scales: Tensor) -> None:
        """Divide what is made by scales [in], in place."""
        module = self.part.module
        if self.rows is None:
            _divide_norm(module, scales)
            return
        rows = self.rows.to(module.weight.device)
        divisor = torch.ones(len(module.weight), device=module.weight.device)
        divisor[rows] = scales
        module.weight.div_(divisor.unsqueeze(1).to(module.weight.dtype))
        if module.bias is not None:
            module.bias.div_(divisor.to(module.bias.dtype))


def sources(block: Block, sets: Sequence[Sequence[Site]], run: Callable[[], Any]) -> list[Source | None]:
    """Return what makes the inputs of each set of layers in a block, or None where that is neither norm nor layer.

    Args:
        run: runs the block once.
    """
    made: list[tuple[Any, Part]] = []
    given: dict[str, Tensor] = {}

    def norm_hook(part: Part) -> Callable[..., None]:
        return lambda _module, _arguments, _keywords, output: made.append((output, part))

    def site_hook(site: Site) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given.setdefault(site.path, given_to(arguments, keywords))

        return hook

    norms = [(m, norm_hook(Part(path, m))) for path, m in block.module.named_modules() if is_norm(m)]
    firsts = [(members[0].module, site_hook(members[0])) for members in sets]
    with watching(norms, outputs=True), watching(firsts), torch.no_grad():
        run()
    found: list[Source | None] = []
    for members in sets:
        norm = next((part for tensor, part in made if tensor is given.get(members[0].path)), None)
        found.append(Source(norm) if norm is not None else _layer_source(block, members))
    return found


def _layer_source(block: Block, members: Sequence[Site]) -> Source | None:
    paths = {path for site in members for path in site.paths}
    for attention in (block.attention, block.cross):
        if attention is not None and attention.output.path in paths and _plain(attention.value):
            return Source(attention.value, _value_rows(attention))
    layer = block.feed_forward
    if layer is not None and layer.down.path in paths and _plain(layer.up):
        return Source(layer.up, layer.rows("up"))
    return None


def _plain(part: Part) -> bool:
    return type(part.module) is nn.Linear


def _value_rows(attention: Attention) -> Tensor:
    """Return the row of the value projection that makes each input of the output projection, int64 [heads * dim]."""
    shared = attention.heads // attention.kv_heads
    return attention.rows("value").repeat_interleave(shared, dim=0).flatten()


def fold(members: Sequence[Site], source: Source | None, scales: Tensor, answer: Callable[[], Tensor]) -> Tensor | None:
    """Multiply the inputs' columns of some layers and divide what makes the inputs; return the scales that were taken.

    Returns None, and nothing is changed, where there is no source or the block would answer otherwise.

    Args:
        scales: float32 [in], those of one source row made equal.
        answer: runs the block once and returns its first tensor.
    """
    if source is None or getattr(source.part.module, "weight", None) is None:
        return None
    scales = source.tied(scales)
    touched = [source.part.module, *(site.module for site in members)]
    kept = {p: p.detach().clone() for module in touched for p in module.parameters(recurse=False)}
    before = answer()
    source.divide(scales)
    for site in members:
        multiply(site.module, scales)
    after = answer()
    tolerance = CLOSE.get(before.dtype, CLOSE_16_BIT)
    distance = float((after.double() - before.double()).norm())
    if distance <= tolerance * float(before.double().norm()):
        return scales
    with torch.no_grad():
        for parameter, value in kept.items():
            parameter.copy_(value)
    return None


def wrap(model: nn.Module, site: Site, scales: Tensor) -> tuple[nn.Module, Site]:
    """Put the division of a layer's inputs in front of it; return the model and the site of the layer inside."""
    factors = (1.0 / scales).clamp(LEAST, 1 / LEAST).half()
    multiply(site.module, 1.0 / factors.float())
    model = replace(model, site, ScaledInput.around(site.module, factors))
    return model, Site(tuple(f"{path}.layer".strip(".") for path in site.paths), site.module)


@torch.no_grad()
def multiply(layer: nn.Linear, scales: Tensor) -> None:
    """Multiply the columns of a layer's weight by scales [in], in place."""
    layer.weight.mul_(scales.to(layer.weight))


@torch.no_grad()
def _divide_norm(norm: Any, scales: Tensor) -> None:
    """Divide what a norm gives: its gain, or one plus its gain (Gemma), whichever is the norm's own formula."""
    probe = torch.linspace(-2.0, 3.0, len(norm.weight)).to(norm.weight).expand(2, -1) * torch.tensor(
        [[1.0], [-0.7]]
    ).to(norm.weight)
    before, gain = norm(probe), norm.weight.detach().clone()
    scales = scales.to(gain)
    if getattr(norm, "bias", None) is not None:
        norm.bias.div_(scales)
    norm.weight.copy_(gain / scales)
    away = (norm(probe) * scales - before).abs().max()
    if float(away) > 1e-3 * float(before.abs().max()):
        norm.weight.copy_((1 + gain) / scales - 1)


def normalised(scales: Tensor) -> Tensor:
    """Return scales [in] around one: divided by the root of greatest times least, inside of what fp16 holds well."""
    middle = (scales.max() * scales.min()).sqrt()
    return (scales / middle).clamp(LEAST, 1 / LEAST) if float(middle) > 0 else torch.ones_like(scales)
