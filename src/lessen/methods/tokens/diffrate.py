"""DiffRate: learn by gradient how many tokens to prune and to merge in each block, under a multiply-add budget."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from lessen.errors import InputError, TaskError
from lessen.method import Card
from lessen.methods.tokens._shared.common import BLOCKS, CLAIMS, Survey, TokenMethod, share_of
from lessen.tokens.local_search import Limits, polish
from lessen.tokens.patch import reduce_tokens
from lessen.tokens.reducers import RankMerge, Reducer
from lessen.tokens.search import RateSearch, find_rates


class DiffRate(TokenMethod):
    """Search per-block pruning and merging counts by gradient through the compression rate; weights stay frozen.

    DiffRate, ICCV 2023 (arXiv 2305.17997). Differences: the budget is a share of the model's own multiply-adds, with
    a penalty of 100 (share - target)^2 (the paper's 5 (GFLOPs - target)^2 is about that for DeiT-S); rates start at an
    even schedule of that budget instead of at half of the patches in every block; stochastic depth is off; the cosine
    that scales a merged size is clamped to [0, 1] in the reduction and carries no gradient (in the search every
    merged token counts for 1 at least, as released); counts above the budget after the search are lowered one by one;
    towers of fewer than 12 blocks are reduced from block 0 on (a 6-block tower that spares it has too little room).

    Two additions. Merging joins the most similar pairs of keys, size-weighted, which is how the paper describes it;
    `matching: tail` merges the lowest ranks into the head as the released code does. And `polish` trials move counts
    between blocks, starting from the searched and from even schedules, and keep what brings the outputs on
    validation pictures nearer to those of the unreduced model; `polish: 0` is the published search alone.
    """

    card = Card(
        name="diffrate",
        family="tokens",
        summary="Learn how many tokens each block prunes and merges, under a multiply-add budget.",
        acts_on=BLOCKS,
        source="arXiv 2305.17997",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=CLAIMS,
    )
    macs: float = Field(0.6, gt=0, le=1, description="share of the multiply-adds to reach")
    steps: int = Field(300, ge=1, le=100_000, description="batches of the search")
    granularity: int = Field(1, ge=1, le=64, description="distance between candidate counts")
    learning_rate: float = Field(0.05, gt=0, le=1, description="step size on the logits of the rates")
    first: int | None = Field(
        None, ge=0, le=1000, description="first block that reduces; none: 1 of 12 blocks in proportion, as published"
    )
    penalty: float = Field(100.0, ge=0, le=1e6, description="weight of (share - macs)^2 in the loss")
    proportional: bool = Field(True, description="add log(size) to the attention logits of each key")
    matching: Literal["pairs", "tail"] = Field(
        "pairs", description="merge the most similar pairs (the paper), or the lowest ranks into the head (its code)"
    )
    polish: int = Field(40, ge=0, le=100_000, description="schedules tried after the search; 0 is the search alone")
    polish_batches: int = Field(4, ge=1, le=100_000, description="validation batches that judge a trial")

    def reducer(self, survey: Survey) -> Reducer:
        """Search on training batches and return the counts found."""
        began = time.perf_counter()
        trainable = [(p, p.requires_grad) for p in survey.model.parameters()]
        for parameter, _ in trainable:
            parameter.requires_grad_(False)
        try:
            found, history = self._search(survey)
        finally:
            for parameter, wanted in trainable:
                parameter.requires_grad_(wanted)
        trimmed = trim(survey, found, self.macs)
        findings = survey.context.findings
        findings["searched_share"] = share_of(survey, found)
        findings["search_loss"] = [round(loss, 4) for loss, _ in history[:: max(1, len(history) // 20)]]
        chosen = self._polished(survey, trimmed) if self.polish else trimmed
        survey.context.train_seconds += time.perf_counter() - began
        return chosen

    def _polished(self, survey: Survey, searched: RankMerge) -> RankMerge:
        """Return the best schedule near the searched and the even ones. Raises TaskError without validation data."""
        limits = Limits(survey.shape, survey.tower.protected, self.macs, self._first(survey))
        tried = (searched, limits.even(searched), limits.even(searched, last=False))
        starts = [start for start in tried if limits.needs(start) <= self.macs]
        if not starts:
            return searched
        judge = Judge(survey, self.polish_batches)
        best, history = polish(limits, starts, judge, self.polish, survey.context.seed)
        survey.context.findings["polish_divergence"] = [round(value, 6) for value in history]
        return best

    def _first(self, survey: Survey) -> int:
        """Return the first block that reduces. Raises InputError when none is left."""
        depth = survey.shape.depth
        first = depth // 12 if self.first is None else self.first
        if first >= depth:
            raise InputError(f"diffrate: the tower has blocks 0..{depth - 1}; first = {first} leaves none to reduce")
        return first

    def _search(self, survey: Survey) -> tuple[RankMerge, list[tuple[float, float]]]:
        first = self._first(survey)
        search = RateSearch(
            survey.model, survey.shape, granularity=self.granularity, target=self.macs, skip_first=first
        )
        seed = survey.context.seed
        with torch.enable_grad():
            history = find_rates(
                search,
                lambda batch: survey.task.loss(survey.model, batch),
                lambda number: survey.task.batches("train", seed=seed * 1_000_003 + number - 1),
                target=self.macs,
                steps=self.steps,
                learning_rate=self.learning_rate,
                weight=self.penalty,
                log=survey.context.log,
            )
        found = search.reducer(self.proportional)
        limits = Limits(survey.shape, survey.tower.protected, 1.0)
        return limits.schedule(limits.removals(found), replace(found, matching=self.matching)), history


class Judge:
    """How far a schedule moves the outputs on validation pictures: the mean divergence from the unreduced model."""

    def __init__(self, survey: Survey, batches: int) -> None:
        self.survey = survey
        self.batches = list(itertools.islice(survey.task.batches("validation"), batches))
        if not self.batches:
            raise TaskError(f"task {survey.task.name!r} has an empty validation split; give it rows, or set polish: 0")
        self.wanted = self._outputs()

    def __call__(self, schedule: RankMerge) -> float:
        """Return the divergence in nats per picture."""
        patch = reduce_tokens(self.survey.model, schedule)
        try:
            given = self._outputs()
        finally:
            patch.remove()
        pairs = zip(given, self.wanted, strict=True)
        total = sum(float(F.kl_div(g, w, reduction="sum", log_target=True)) for g, w in pairs)
        return total / sum(len(outputs) for outputs in self.wanted)

    @torch.no_grad()
    def _outputs(self) -> list[torch.Tensor]:
        model = self.survey.model.eval()
        return [self.survey.task.forward(model, batch).float().log_softmax(-1) for batch in self.batches]


def trim(survey: Survey, found: RankMerge, share: float) -> RankMerge:
    """Lower the last counts, one token at a time and from the end, until the budget holds."""
    block = survey.shape.depth - 1
    while share_of(survey, found) > share and max(found.merged) > 1 + survey.tower.protected:
        pruned, merged = list(found.pruned), list(found.merged)
        limit = merged[block] - 1
        if limit > survey.tower.protected:
            for later in range(block, survey.shape.depth):
                pruned[later], merged[later] = min(pruned[later], limit), min(merged[later], limit)
        found = replace(found, pruned=tuple(pruned), merged=tuple(merged))
        block = block - 1 if block > 0 else survey.shape.depth - 1
    return found
