"""BiLLM: one sign a weight, two for the columns that matter, and a few levels for each row of a block."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods.sites import Site, module_bytes
from lessen.methods.weights._shared.binarising import binarise
from lessen.methods.weights._shared.calibrated import Calibrated
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.error_feedback import Feedback
from lessen.methods.weights._shared.few_bits import HALF_MAX, note_error
from lessen.stored.linears.billm import BiLLMLinear, layer_bytes
from lessen.task import Task


class BiLLM(Calibrated):
    """Keep the sign of each weight, a second one in salient columns, and levels for each row of a block of inputs.

    Source: Huang et al., "BiLLM: Pushing the Limit of Post-Training Quantization for LLMs", ICML 2024 (arXiv
    2402.04291); `hessian=output` is OAC (arXiv 2405.15025), whose binary form this is.
    The 1.1 bits of the paper count signs only. Each ordinary weight also needs, with `split`, a bit that says its
    class, and each row of a block its levels: that is 2.9 bits a weight at blocks of 128, all of which are stored and
    counted here. `split=false, block=null` is what about 1.2 bits really buy.
    Differs from the paper: ordinary weights are parted by their magnitude, as the text says (the code parts by
    saliency); the error that goes on to later blocks is that of the whole block, (W - Q) U^-1, where the code divides
    by the diagonal; levels are rounded to fp16 before errors are measured; the means of both signs are stored as their
    sum. Layers outside the Transformer blocks stay. No kernel reads this form: bytes are saved
    on disk, and a served model holds it decoded.
    """

    card = Card(
        name="billm",
        family="weights",
        summary="Keep one or two signs of each linear weight and a few levels for each row; hessian=output: OAC.",
        acts_on=(nn.Linear,),
        source="Huang et al. 2024, arXiv 2402.04291; OAC: arXiv 2405.15025",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes"}),
    )
    block: int | None = Field(
        128, ge=16, le=65536, description="inputs whose rows share levels, and after which errors go on; none: all"
    )
    split: bool = Field(True, description="part ordinary weights by magnitude, for a second bit each; false: 1 bit")
    min_weights: int = Field(1024, ge=1, le=10**9, description="layers with fewer weights stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible layer. Raises NothingMatchedError; TaskError for an empty train split."""
        model = linearised(model)
        sites = self.eligible(model, (nn.Linear,), context, self._reject)
        return self.calibrate(model, sites, task, context)

    def rounded(self, site: Site, spread: Feedback, context: Context) -> BiLLMLinear:
        """Return the layer in BiLLM's form and record its error and its share of salient columns."""
        layer: Any = site.module
        found = binarise(layer.weight, spread, self._width(layer), self.split)
        made = BiLLMLinear.from_parts(layer, self._width(layer), found.signs, found.second, found.salient, found.levels)
        note_error(site, made, context)
        share = made.salient_columns / layer.in_features
        context.findings.setdefault("salient", {})[site.path] = round(share, 4)
        return made

    def _width(self, layer: nn.Linear) -> int:
        return min(self.block or layer.in_features, layer.in_features)

    def _reject(self, layer: Any) -> str | None:
        if layer.weight.numel() < self.min_weights:
            return f"has {layer.weight.numel()} weights, fewer than min_weights {self.min_weights}"
        if layer_bytes(layer, self._width(layer), self.split) >= module_bytes(layer):
            return "signs and levels take no fewer bytes than it does now"
        if float(layer.weight.detach().abs().max()) > HALF_MAX:
            return "holds weights beyond 65504, which fp16 levels cannot"
        return None
