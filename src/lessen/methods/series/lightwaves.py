"""LightWaveS: some hundred features of a wavelet bank in place of all, on few channels, with the head fitted anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.method import Card, Context, Method
from lessen.methods.sites import Site, find, replace, replace_everywhere, require
from lessen.series import choosing
from lessen.series.ridge import ridge_head
from lessen.stored.series.wavelet_bank import WaveletBank
from lessen.task import Task


class LightWaveS(Method):
    """Keep the features of a `WaveletBank` that tell the classes apart, and fit its linear head again by ridge.

    An ANOVA filter keeps the best features of each channel, a global cut the best `before` of all, and mRMR `features`
    of those. Labels of the train split decide; channels of which nothing is kept need not be measured at all. The
    model holds one bank and one `nn.Linear` that reads all of its features; any model of one's own may.

    Source: arXiv 2204.01379, variant L1L2, and the official repository. Differs in that runs reaching the last sample
    count, that perfectly separating features are kept instead of thrown away, that flat stretches count as neither
    above nor below zero, and in columns standardised for the head.
    """

    card = Card(
        name="lightwaves",
        family="series",
        summary="Keep some hundred features of a wavelet bank, on few channels; fit the linear head again.",
        acts_on=(WaveletBank,),
        source="DCOSS 2022, arXiv 2204.01379",
        needs=frozenset({"labels", "calibration"}),
        claims=frozenset({"bytes", "macs"}),
    )
    features: int = Field(500, ge=1, le=10**6, description="features kept at most")
    before: int = Field(1500, ge=1, le=10**6, description="features that the redundancy-aware selection chooses from")
    samples: int = Field(1500, ge=4, le=10**6, description="training series that the selection looks at")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Choose, cut the bank and fit the head.

        Raises:
            NothingMatchedError: no bank, several, one that holds no more features than wanted, or no head reads it.
            TaskError: the train split is empty, or its inputs are not series with one class each.
            DataError: no feature varies between the training series.
        """
        bank = self._bank(model, context)
        head = self._head(model, bank, context)
        series, codes = train_series(task, self.card.name, head.module.out_features)
        sizes = {"features": self.features, "before": max(self.before, self.features), "samples": self.samples}
        chosen = choosing.choose(bank, series, codes, **sizes, seed=context.seed)
        made, penalty = ridge_head(choosing.features_of(chosen, series), codes, head.module.out_features)
        context.findings |= {
            "features": chosen.features,
            "kernels": chosen.kernels,
            "channels": chosen.used_channels,
            "penalty": round(penalty, 6),
        }
        chosen.to(bank.mean.device)
        model = replace_everywhere(model, bank, chosen.train(bank.training))
        made.to(head.module.weight)
        for name, parameter in made.named_parameters():
            own = getattr(head.module, name)
            parameter.requires_grad_(own is None or own.requires_grad)
        return replace(model, head, made)

    def _bank(self, model: nn.Module, context: Context) -> WaveletBank:
        banks = {path: module for path, module in model.named_modules() if isinstance(module, WaveletBank)}
        found = [bank for bank in banks.values() if bank.features > self.features]
        for path, bank in banks.items():
            if bank.features <= self.features:
                context.findings.setdefault("skipped", {})[path] = f"holds {bank.features} features already"
        if len(found) != 1:
            skipped = context.findings.get("skipped", {})
            why = "; ".join(f"{path}: {reason}" for path, reason in skipped.items())
            raise self.nothing_matched(model, why if not found else f"{len(found)} banks; it cuts one")
        return found[0]

    def _head(self, model: nn.Module, bank: WaveletBank, context: Context) -> Site:
        def reject(layer: Any) -> str | None:
            return None if layer.in_features == bank.features else f"does not read the bank's {bank.features} features"

        sites = require(find(model, (nn.Linear,), context, reject), self, model, context)
        if len(sites) > 1:
            raise self.nothing_matched(model, f"{len(sites)} linear layers read {bank.features} features; one may")
        return sites[0]


def train_series(task: Task, method: str, classes: int) -> tuple[Tensor, np.ndarray]:
    """Return the train split: series float32 [n, channels, length] and classes int64 [n].

    Raises:
        TaskError: the split is empty, or its inputs are not series with one class of `classes` each.
    """
    series, codes = [], []
    for batch in task.batches("train"):
        inputs, target = task.inputs(batch), task.target(batch)
        if not isinstance(inputs, Tensor) or inputs.dim() != 3 or target.dim() != 1 or target.is_floating_point():
            raise TaskError(f"{method} needs batches of series [n, channels, length] and classes [n]")
        series.append(inputs.detach().float().cpu())
        codes.append(target.cpu())
    if not series:
        raise TaskError(f"task {task.name!r} has an empty train split; {method} chooses features by its labels")
    joined = torch.cat(codes)
    low, high = (int(end) for end in joined.aminmax())
    if low < 0 or high >= classes:
        raise TaskError(f"task {task.name!r} has classes {low} to {high}, the model's head 0 to {classes - 1}")
    return torch.cat(series), joined.long().numpy()
