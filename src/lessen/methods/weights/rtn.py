"""Round to nearest: few-bit linear layers without data, the baseline of every calibrated method."""

from __future__ import annotations

from typing import Any

from torch import nn

from lessen.method import Card, Context
from lessen.methods.sites import replace
from lessen.methods.weights._shared.few_bits import FewBits
from lessen.methods.weights._shared.grids import quantise
from lessen.stored.linears.coded_scales import of_grid
from lessen.task import Task


class RTN(FewBits):
    """Round each linear weight to the nearest of 2^bits levels of its group; no data, no training.

    Source: the round-to-nearest baseline and the quantiser of GPTQ (arXiv 2210.17323).
    Differences: scales and minimums are stored in fp16 and rounded before the weights are, so that what is measured
    is what is stored. The asymmetric grid has a minimum in place of an integer zero point and need not hold zero:
    weights that were dequantised from such a grid (Q4_1 at group 32) come back exactly. The search moves both ends of
    a range that does not hold zero towards its nearer end. A layer whose inputs are no multiple of the group ends in
    a shorter group. A Transformer's token embedding and a head over its rows take `table_bits`.
    Layers run on their codes where the extra `kernels` is there: with inputs as they come or, with activations=int8,
    faster and with inputs rounded too. Elsewhere a forward decodes.
    """

    card = Card(
        name="rtn",
        family="weights",
        summary="Round linear weights to 2 to 8 bits with a scale for each group of inputs.",
        acts_on=(nn.Linear,),
        source="Frantar et al. 2022, arXiv 2210.17323 (its baseline)",
        claims=frozenset({"bytes"}),
    )
    version = 2

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace each eligible layer. Raises NothingMatchedError."""
        model, sites = self.prepared(model, context)
        for number, site in enumerate(sites):
            context.log.progress("round to nearest", number, len(sites))
            layer: Any = site.module
            grid = self.grid_of(layer)
            made = of_grid(layer, grid, quantise(layer.weight, grid), self.activations)
            self.record(site, made, context)
            model = replace(model, site, made)
        self.remark(context)
        return model
