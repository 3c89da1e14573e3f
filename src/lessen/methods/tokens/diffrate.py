"""DiffRate: learn by gradient how many tokens to prune and to merge in each block, under a multiply-add budget."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field

from lessen.errors import InputError, TaskError
from lessen.method import Card
from lessen.methods.tokens.common import BLOCKS, FREES, Scene, TokenMethod, share_of
from lessen.task import Task
from lessen.tokens.reducers import RankMerge, Reducer
from lessen.tokens.search import RateSearch, find_rates


class DiffRate(TokenMethod):
    """Search per-block pruning and merging counts by gradient through the compression rate; weights stay frozen.

    DiffRate, ICCV 2023 (arXiv 2305.17997). Differences: the budget is a share of the model's own multiply-adds, with
    a penalty of 100 (share - target)^2 (the paper's 5 (GFLOPs - target)^2 is about that for DeiT-S); rates start at an
    even schedule of that budget instead of at half of the patches in every block; stochastic depth is off; the cosine
    that scales a merged size is clamped to [0, 1]; counts above the budget after the search are lowered one by one;
    towers of fewer than 12 blocks are reduced from block 0 on (a 6-block tower that spares it has too little room).
    """

    card = Card(
        name="diffrate",
        family="tokens",
        summary="Learn how many tokens each block prunes and merges, under a multiply-add budget.",
        acts_on=BLOCKS,
        source="arXiv 2305.17997",
        needs=frozenset({"labels", "gradients", "training"}),
        frees=FREES,
        tags=frozenset({"search", "vision"}),
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

    def reducer(self, scene: Scene) -> Reducer:
        """Search on training batches and return the counts found."""
        began = time.perf_counter()
        trainable = [(p, p.requires_grad) for p in scene.model.parameters()]
        for parameter, _ in trainable:
            parameter.requires_grad_(False)
        try:
            found, history = self._search(scene)
        finally:
            for parameter, wanted in trainable:
                parameter.requires_grad_(wanted)
        scene.context.train_seconds += time.perf_counter() - began
        trimmed = trim(scene, found, self.macs)
        scene.context.findings["searched_share"] = share_of(scene, found)
        scene.context.findings["search_loss"] = [round(loss, 4) for loss, _ in history[:: max(1, len(history) // 20)]]
        return trimmed

    def _search(self, scene: Scene) -> tuple[RankMerge, list[tuple[float, float]]]:
        depth = scene.shape.depth
        first = depth // 12 if self.first is None else self.first
        if first >= depth:
            raise InputError(f"diffrate: the tower has blocks 0..{depth - 1}; first = {first} leaves none to reduce")
        search = RateSearch(scene.model, scene.shape, granularity=self.granularity, target=self.macs, skip_first=first)
        batches = endless(scene.task, scene.context.seed)
        with torch.enable_grad():
            history = find_rates(
                search, lambda batch: scene.task.loss(scene.model, batch), batches, target=self.macs,
                steps=self.steps, learning_rate=self.learning_rate, weight=self.penalty,
            )  # fmt: skip
        return search.reducer(self.proportional), history


def endless(task: Task, seed: int) -> Iterator[Any]:
    """Yield training batches, epoch after epoch. Raises TaskError when the train split is empty."""
    for epoch in itertools.count():
        empty = True
        for batch in task.batches("train", seed=seed * 1_000_003 + epoch):
            empty = False
            yield batch
        if empty:
            raise TaskError(f"task {task.name!r} has an empty train split; give it rows or choose another split")


def trim(scene: Scene, found: RankMerge, share: float) -> RankMerge:
    """Lower the last counts, one token at a time and from the end, until the budget holds."""
    block = scene.shape.depth - 1
    while share_of(scene, found) > share and max(found.merged) > 1 + scene.tower.protected:
        pruned, merged = list(found.pruned), list(found.merged)
        limit = merged[block] - 1
        if limit > scene.tower.protected:
            for later in range(block, scene.shape.depth):
                pruned[later], merged[later] = min(pruned[later], limit), min(merged[later], limit)
        found = replace(found, pruned=tuple(pruned), merged=tuple(merged))
        block = block - 1 if block > 0 else scene.shape.depth - 1
    return found
