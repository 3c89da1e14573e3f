"""HyPE: ids of documents written along paths of categories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from pydantic import Field
from torch import nn

from lessen.capabilities import HasPaths
from lessen.errors import TaskError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.modules import ModuleMethod
from lessen.retrieval.document_writer import DocumentWriter, PathGuide
from lessen.task import Split, Task

IGNORED = -100


class HyPE(ModuleMethod):
    """Train a model that writes ids to write a path of categories first, and search along the likeliest paths.

    Source: Lee et al., Findings of ACL 2026, arXiv 2411.05572. A target is path, then id; a query is searched by beams
    over paths, then over ids behind each, and of a document its best entry counts: that path is why it was found.
    Differences: paths are those that documents have (a trie), where the published code writes them freely and repairs
    them; the encoder and each path run once for all beams; padding is left out of the loss, which the code trains on;
    categories come from the task, where the paper lets a language model choose them.
    """

    card = Card(
        name="hype",
        family="retrieval",
        summary="Write ids of documents along paths of categories, which say why a document was found.",
        acts_on=(DocumentWriter,),
        source="HyPE, Lee et al. 2026, arXiv 2411.05572",
        needs=frozenset({"gradients", "labels", "paths", "training"}),
        claims=frozenset(),
    )
    tried: int = Field(3, ge=1, le=1000, description="paths that ids are written along (num_path)")
    beams: int = Field(10, ge=1, le=10_000, description="beams of the search for paths")
    epochs: int | None = Field(None, ge=1, le=10_000, description="epochs; none: the task's own")

    def prepare(self, task: Task, context: Context) -> Task:  # noqa: ARG002 - nothing is drawn
        """Return the task whose training targets begin with the path of their document. Raises TaskError."""
        held = _paths(self, task)

        def batches(split: Split, seed: int = 0) -> Iterator[Any]:
            for batch in task.batches(split, seed):
                yield batch if split != "train" else _led(batch, held)

        return task.view(batches=batches)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Put the guide beside every writer and train. Raises NothingMatchedError; TaskError: see `prepare`."""
        writers = self.parts(model, DocumentWriter)
        if not writers:
            raise self.nothing_matched(model)
        different = list(dict.fromkeys(tuple(one) for one in _paths(self, task)))
        for writer in writers:
            writer.guide = PathGuide.of(different, min(self.tried, len(different)), self.beams)
        retrain.train(model, task, context, self.epochs)
        context.findings["paths"] = len(different)
        return model


def _paths(method: HyPE, task: Task) -> list[list[int]]:
    held = [list(one) for one in cast("HasPaths", task).paths()]
    if not held or not all(held):
        raise TaskError(f"{method.card.name}: task {task.name!r} has a document without a path of categories")
    return held


def _led(batch: Any, paths: list[list[int]]) -> Any:
    """Return a batch whose targets, [B, S] with -100 behind, begin with their documents' paths.

    A batch is (inputs, labels, documents int64 [B]); what the decoder reads is the target, one place later.
    """
    inputs, labels, documents = batch
    rows = [
        [*paths[document], *(token for token in row if token != IGNORED)]
        for document, row in zip(documents.tolist(), labels.tolist(), strict=True)
    ]
    longest = max(map(len, rows))
    made = torch.tensor([row + [IGNORED] * (longest - len(row)) for row in rows])
    start = inputs["decoder_input_ids"][:, :1]
    later = torch.cat([start, made[:, :-1].clamp(min=0)], dim=1)
    return {**inputs, "decoder_input_ids": later}, made, documents
