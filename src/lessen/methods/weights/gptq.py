"""GPTQ: few-bit linear layers whose rounding errors are made good on calibration data, block by block."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from lessen.method import Card, Context
from lessen.methods.sites import Site
from lessen.methods.weights._shared.calibrated import Calibrated
from lessen.methods.weights._shared.error_feedback import Feedback
from lessen.methods.weights._shared.few_bits import FewBits
from lessen.methods.weights._shared.grids import fit_grid, quantise
from lessen.methods.weights._shared.refitting import rounds
from lessen.stored.linears.coded_scales import of_grid
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.task import Task


class GPTQ(FewBits, Calibrated):
    """Round the weights of one input after another and let those that are left make the error good.

    Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR
    2023 (arXiv 2210.17323); `hessian=output` is OAC, "OAC: Output-adaptive Calibration for Accurate Post-training
    Quantization", AAAI 2025 (arXiv 2405.15025), on GPTQ's form. Blocks are done in order, on the outputs of those that
    are quantised already. `true_sequential` does the layers of a block in the order in which they are called, those
    that read one tensor (queries, keys and values; gate and up) together; without it all see the inputs of the block as
    it was.
    `refit` solves for the scales and minimums of a row under the curvature once its codes are known, and rounds codes
    again on them: same form, same bytes; a row keeps what errs less. No paper named here has it.
    Differs from the papers: group grids are always static (fitted to the original weights; with `refit` to the codes of
    whole rows), so that order never has to be stored and codes fit every format of groups; grids are those of `rtn`;
    the input curvature sums over tokens in place of a mean over sequences, which scales it and changes nothing; weights
    of inputs that calibration never excites are rounded to nearest, not set to zero; what reads one tensor is found by
    running the block, for any host.
    OAC's order is not public: gradients of a few blocks at a time are taken in one pass with those before them
    quantised, in the type of the model, and damping is 0.1 unless given. The token embedding and a head over its rows
    are rounded to nearest at `table_bits`; other layers outside the blocks stay as they are. A model without
    Transformer blocks is calibrated in one pass of the model as it was.
    """

    version = 2
    card = Card(
        name="gptq",
        family="weights",
        summary="Round linear weights to 2 to 8 bits, errors made good by weights to come; hessian=output: OAC.",
        acts_on=(nn.Linear,),
        source="Frantar et al. 2023, arXiv 2210.17323; OAC: arXiv 2405.15025",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes"}),
    )
    act_order: bool = Field(True, description="inputs in falling order of curvature, in place of their own")
    refit: int = Field(
        0, ge=0, le=20, description="times that grids are fitted to the codes by least squares under the curvature, "
        "weights rounded again between"
    )  # fmt: skip

    @model_validator(mode="after")
    def _check_refit(self) -> Self:
        if self.refit and self.zeros == "whole":
            raise ValueError("refit moves scales and minimums freely, and zeros=whole allows few; set one of them")
        return self

    @property
    def by_curvature(self) -> bool:
        """Whether inputs are done in falling order of curvature."""
        return self.act_order

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible layer. Raises NothingMatchedError; TaskError for an empty train split."""
        model, sites = self.prepared(model, context)
        if sites:  # there are none where `only` named the token embedding
            model = self.calibrate(model, sites, task, context)
        self.remark(context)
        return model

    def form(self, site: Site) -> GroupQuantizedLinear:
        """Return the layer rounded to nearest: codes and scales take the same bytes."""
        layer: Any = site.module
        width = self.width(layer)
        grid = fit_grid(layer.weight, self.bits, width, self.symmetric, "minmax", self.zeros, self.scale_bits)
        return of_grid(layer, grid, quantise(layer.weight, grid), self.activations)

    def rounded(self, site: Site, spread: Feedback, context: Context) -> GroupQuantizedLinear:
        """Return the layer on its grid and record its error."""
        layer: Any = site.module
        grid = self.grid_of(layer)
        found = rounds(layer.weight, grid, spread, self.refit)
        made = of_grid(layer, found.grid, found.codes, self.activations)
        self.record(site, made, context)
        return made
