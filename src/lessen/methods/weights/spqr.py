"""SpQR: codes of small groups whose scales are codes too, and the few weights that would err most kept in fp16."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods.sites import Site, module_bytes
from lessen.methods.weights._shared.calibrated import Calibrated
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.error_feedback import Feedback
from lessen.methods.weights._shared.few_bits import HALF_MAX, note_error
from lessen.methods.weights._shared.sparse_rounding import Rules, round_sparsely
from lessen.stored.linears.spqr import SpQRLinear, Statistics, layer_bytes
from lessen.task import Task


class SpQR(Calibrated):
    """Round in groups of 16 with scales and zeros of 3 bits, and keep the weights whose errors would cost most.

    Source: Dettmers et al., "SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression", ICLR
    2024 (arXiv 2306.03078); `hessian=output` is OAC (arXiv 2405.15025), whose 2-bit form this is.
    Differs from the papers: grids are fitted to weights with all updates of the columns before them, those of the same
    block of 128 included; outliers are stored as they are in fp16, 32 bits each with their column, and what fp16 loses
    of them is made good like any other error; zeros are clipped at 60000; inputs that calibration never excites are
    rounded to nearest in place of zeroed. `threshold` means what the code does, not its help text: higher keeps fewer.
    Layers outside the Transformer blocks stay. No kernel reads this form: bytes are saved on
    disk, and a served model holds it decoded, which is faster than groups of 16 widened by a kernel (tried: four times
    the decoded product's time on AVX2, outliers included).
    """

    card = Card(
        name="spqr",
        family="weights",
        summary="Round linear weights in groups of 16 with coded scales, and keep outliers; hessian=output: OAC.",
        acts_on=(nn.Linear,),
        source="Dettmers et al. 2023, arXiv 2306.03078; OAC: arXiv 2405.15025",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes"}),
    )
    bits: Literal[2, 3, 4, 5, 6, 8] = Field(3, description="bits of a weight")
    group: int = Field(16, ge=4, le=256, description="inputs that share a scale and a zero")
    stats_bits: Literal[2, 3, 4, 5, 6, 8] = Field(3, description="bits of a scale, and of a zero")
    stats_group: int = Field(16, ge=4, le=256, description="outputs whose scales share a grid of their own")
    threshold: float | None = Field(
        0.2, gt=0, le=1e6, description="squared error, as a share of the mean column's, beyond which a weight is kept; "
        "higher keeps fewer; none: keep none"
    )  # fmt: skip
    leave_one_out: bool = Field(True, description="put likely outliers aside before a grid is fitted; false is faster")
    act_order: bool = Field(True, description="inputs in falling order of curvature; the order is stored")
    min_weights: int = Field(1024, ge=1, le=10**9, description="layers with fewer weights stay as they are")

    @property
    def damping_used(self) -> float:
        """The share of the mean curvature that is added: 1, as the authors run it."""
        return 1.0 if self.damping is None else self.damping

    @property
    def by_curvature(self) -> bool:
        """Whether inputs are done in falling order of curvature."""
        return self.act_order

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible layer. Raises NothingMatchedError; TaskError for an empty train split."""
        model = linearised(model)
        sites = self.eligible(model, (nn.Linear,), context, self._reject)
        return self.calibrate(model, sites, task, context)

    def rounded(self, site: Site, spread: Feedback, context: Context) -> SpQRLinear:
        """Return the layer in SpQR's form and record its error and its share of outliers."""
        layer: Any = site.module
        group = min(self.group, layer.in_features)
        share = math.inf if self.threshold is None else self.threshold
        rules = Rules(self.bits, group, self.stats_bits, self.stats_group, share, self.leave_one_out)
        found = round_sparsely(layer.weight, spread, rules)
        assert isinstance(found.scales, Statistics)
        assert isinstance(found.zeros, Statistics)
        order = spread.order if self.act_order else None
        made = SpQRLinear.from_codes(
            layer, found.codes, self.bits, group, found.scales, found.zeros, found.outliers, order
        )
        note_error(site, made, context)
        kept = len(found.outliers.values) / layer.weight.numel()
        context.findings.setdefault("outliers", {})[site.path] = round(kept, 6)
        return made

    def _reject(self, layer: Any) -> str | None:
        if layer.weight.numel() < self.min_weights:
            return f"has {layer.weight.numel()} weights, fewer than min_weights {self.min_weights}"
        least = layer_bytes(layer, self.bits, min(self.group, layer.in_features), self.stats_bits, self.stats_group)
        if least >= module_bytes(layer):
            return f"{self.bits} bit codes with their statistics take no fewer bytes than it does now"
        if float(layer.weight.detach().abs().max()) > HALF_MAX:
            return "holds weights beyond 65504, which fp16 outliers cannot"
        return None
