"""Class-dependent pruning: a lottery ticket that is drawn under a loss which protects one class."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.sites import Site
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.sparsified import CONVOLUTIONS, Sparsified
from lessen.sparsity.masking import Fixed, masked
from lessen.sparsity.pattern import Pattern
from lessen.sparsity.protected import Missed, area, chance, rank_term, weighted_loss
from lessen.stored.linears.sparse import to_matrix
from lessen.task import Split, Task


class ClassDependent(Sparsified):
    """Prune in rounds, each from the same start, by how much weights grew, under a loss that weighs one class.

    Source: Entezari and Saukh, "Class-dependent Compression of Deep Neural Networks", SenSys-ML 2020 (arXiv
    1909.10364). A round starts from the weights that were given, those removed before at zero, trains, and removes in
    each layer the share of the rest whose size grew least. The loss is the cross-entropy in which rows of the protected
    class count `class_weight` times, plus `rank_weight` times the rank term; with 1 and 0 it is a plain lottery ticket.
    Differs from the paper's code, which trains the plain loss: the term is taken of probabilities, not of logits, and
    has a gradient; biases and norms are not pruned; rows of the class are counted anew at each evaluation; with `slack`
    the sparsest round is kept that misses no more than the given model by so much. Missed and false ones are those of
    the validation split at even odds. The weight bought nothing where moving the threshold of a class-blind model does
    as well (`docs/sparsity.md`).
    """

    card = Card(
        name="class-dependent",
        family="weights",
        summary="Prune in rounds from the same start under a loss that protects one class from being missed.",
        acts_on=(nn.Linear, *CONVOLUTIONS),
        source="Entezari and Saukh 2020, arXiv 1909.10364",
        needs=frozenset({"training", "labels"}),
        claims=frozenset({"bytes"}),
    )
    protected: int = Field(1, ge=0, le=10**6, description="the class that must not be missed")
    class_weight: float = Field(3.0, ge=1, le=1000, description="times that a row of the class counts in the loss")
    rank_weight: float = Field(0.0, ge=0, le=1000, description="weight of the term that ranks the class above the rest")
    rounds: int = Field(4, ge=1, le=20, description="rounds of training and removing")
    share: float = Field(0.5, gt=0, le=0.95, description="share of the weights left that each round removes")
    epochs: int | None = Field(None, ge=1, le=10_000, description="epochs of a round; none: what the task trains")
    slack: float | None = Field(
        None, ge=0, le=10, description="keep the sparsest round that misses at most this share more than the given "
        "model; none: the last"
    )  # fmt: skip

    @property
    def kept(self) -> Pattern:
        """What stays of each layer after the last round."""
        return Pattern((1.0 - self.share) ** self.rounds)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train in rounds and replace. Raises NothingMatchedError; TaskError for a class that is absent."""
        model = linearised(model)
        sites = self.eligible(model, (nn.Linear, *CONVOLUTIONS), context, self.reject)
        for split in ("train", "validation"):
            self._check(task, split)
        start = copy.deepcopy(model.state_dict())
        task = task.view(loss=self._loss(task))
        masks = [torch.ones_like(site.module.weight, dtype=torch.bool) for site in sites]
        found = [self._judged(model, task, 1.0)]
        sizes = [site.module.weight.detach().abs().clone() for site in sites]
        self._train(model, sites, masks, task, context)
        best: tuple[list[Tensor], dict[str, Tensor]] | None = None
        for number in range(self.rounds):
            grown = [site.module.weight.detach().abs() - size for site, size in zip(sites, sizes, strict=True)]
            masks = [fewer(mask, score, self.share) for mask, score in zip(masks, grown, strict=True)]
            model.load_state_dict(start)
            self._train(model, sites, masks, task, context)
            density = sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
            found.append(self._judged(model, task, density, sites, masks))
            context.log.progress("class-dependent rounds", number + 1, self.rounds)
            if best is None or self.slack is None or self._within(found):
                best = masks, copy.deepcopy(model.state_dict())
        assert best is not None
        context.findings["protected"] = {"class": self.protected, "threshold": 0.5}
        context.findings["rounds"] = found
        model.load_state_dict(best[1])
        for site, mask in zip(sites, best[0], strict=True):
            model = self.put(model, site, to_matrix(site.module.weight.detach()), to_matrix(mask), context)
        self.remark(model, context)
        return model

    def _train(
        self, model: nn.Module, sites: Sequence[Site], masks: Sequence[Tensor], task: Task, context: Context
    ) -> None:
        with masked({site.module: Fixed(mask) for site, mask in zip(sites, masks, strict=True)}):
            retrain.train(model, task, context, epochs=self.epochs)

    def _loss(self, task: Task) -> Any:
        def loss(model: nn.Module, batch: Any) -> Tensor:
            scores, labels = task.forward(model, batch), task.target(batch).to(next(model.parameters()).device)
            found = weighted_loss(scores, labels, self.protected, self.class_weight)
            if self.rank_weight:
                ours = labels.reshape(-1) == self.protected
                found = found + self.rank_weight * rank_term(chance(scores, self.protected), ours)
            return found

        return loss

    def _check(self, task: Task, split: Split) -> None:
        """Refuse a class that a split does not hold. Raises TaskError."""
        seen: set[int] = set()
        for batch in task.batches(split):
            seen |= {int(label) for label in torch.unique(task.target(batch))}
        if self.protected not in seen:
            held = ", ".join(map(str, sorted(seen)[:10])) or "no rows at all"
            raise TaskError(
                f"{self.card.name}: the {split} split of task {task.name!r} holds no row of the protected class "
                f"{self.protected}, only {held}; set protected to one of them"
            )

    @torch.no_grad()
    def _judged(
        self, model: nn.Module, task: Task, density: float, sites: Sequence[Site] = (), masks: Sequence[Tensor] = ()
    ) -> dict[str, Any]:
        scores, targets = [], []
        with masked({site.module: Fixed(mask) for site, mask in zip(sites, masks, strict=True)}):
            for batch in task.batches("validation"):
                scores.append(task.forward(model.eval(), batch))
                targets.append(task.target(batch).reshape(-1))
        chances = chance(torch.cat(scores), self.protected).cpu()
        ours = torch.cat(targets).cpu() == self.protected
        missed = Missed.count(chances, ours)
        return {
            "density": round(density, 6), **dataclasses.asdict(missed), "missed_95": list(missed.interval),
            "auc": area(chances, ours),
        }  # fmt: skip

    def _within(self, found: Sequence[dict[str, Any]]) -> bool:
        allowed = (1.0 + (self.slack or 0.0)) * found[0]["false_negatives"]
        return bool(found[-1]["false_negatives"] <= allowed)


def fewer(mask: Tensor, scores: Tensor, share: float) -> Tensor:
    """Return the mask without the `share` of what is left whose scores are lowest; at least one stays."""
    left = int(mask.sum())
    count = min(int(left * share), left - 1)
    if count < 1:
        return mask
    order = scores.masked_fill(~mask, torch.inf).flatten().argsort(stable=True)
    made = mask.flatten().clone()
    made[order[:count]] = False
    return made.view_as(mask)
