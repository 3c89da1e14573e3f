"""Queries of two parts: SPN4CIR's frozen bank beside training on in the batch, drawn items and Cranfield.

    python -m benchmarks.retrieval.changes drawn
    python -m benchmarks.retrieval.changes cranfield --data FOLDER --cache FOLDER

`drawn` is the task `composed` (1,000 items). `cranfield`: a reference document and the words of a query look for
another document that people found relevant to the same query; documents are frozen vectors of MiniLM (made by
benchmarks.retrieval.swap), what trains is two small layers over the query's vector. One stage in the batch, then as
many epochs again: in the batch, or against the bank, or against as many drawn targets as a batch has. The control asks
with the reference alone. Three seeds of the start; units are test queries, whose texts no training saw. One thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.retrieval.records import interval, write
from lessen.data.collection import read_cranfield
from lessen.method import Context
from lessen.methods import retrain
from lessen.methods.retrieval.spn4cir import SPN4CIR
from lessen.metrics import Outcomes
from lessen.metrics.retrieval import MRR, Recall, ranked
from lessen.task import Split, Task
from lessen.tasks.retrieval.composed import ComposedOptions, ComposedTask
from lessen.train.settings import FitSettings

SEEDS, EPOCHS, TURNS = 3, 8, {"test": (0, 3), "validation": (1,), "train": (2, 4)}


class Asking(nn.Module):
    """reference [B, 384] + two layers over the query's vector [B, 384]."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Sequential(nn.Linear(384, 256), nn.ReLU(), nn.Linear(256, 384))

    def forward(self, references: Tensor, texts: Tensor) -> Tensor:
        found: Tensor = references + texts + self.text(texts)
        return found


class AnotherDocument(Task):
    """Of every five queries two train, one validates, two test; a unit is a query's first pair of documents."""

    name = "another-document"
    metrics = {"mrr": MRR(), "recall@10": Recall(10)}
    columns = ("mrr", "recall@10")
    settings = FitSettings(epochs=EPOCHS, learning_rate=1e-3, patience=EPOCHS)

    def __init__(self, data: str, cache: Path) -> None:
        held = read_cranfield(Path(data))

        def vectors(kind: str, count: int) -> Tensor:
            parts = [torch.load(cache / f"float32-{kind}-{at}.pt", weights_only=True) for at in range(0, count, 256)]
            return torch.cat(parts)

        self.documents = vectors("documents", len(held.documents))
        self.queries = vectors("queries", len(held.queries))
        self.pairs_of: dict[Split, Tensor] = {}
        for split, turns in TURNS.items():
            found = []
            for number, grades in enumerate(held.grades):
                relevant = sorted(grades)
                if number % 5 in turns and len(relevant) > 1:
                    some = [(number, a, b) for a in relevant for b in relevant if a != b]
                    found += some if split == "train" else some[:: max(1, len(relevant) - 1)][: len(relevant)]
            self.pairs_of[split] = torch.tensor(found)  # type: ignore[index]

    def build(self) -> nn.Module:
        return Asking()

    def batches(self, split: Split, seed: int = 0) -> Iterator[Any]:
        rows = self.pairs_of[split]
        if split == "train":
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
        for part in rows.split(32):
            yield (self.documents[part[:, 1]], self.queries[part[:, 0]]), part[:, 2]

    def bank(self, model: nn.Module) -> Tensor:
        return self.documents

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        asked, held = F.normalize(self.forward(model, batch), dim=1), self.documents[batch[1]]
        return F.cross_entropy(asked @ held.t() / 0.05, torch.arange(len(asked)))

    @torch.no_grad()
    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """The unit is a query: the mean over its pairs; the reference is left out of what is found."""
        rows = self.pairs_of[split]
        asked = torch.cat([self.forward(model, batch) for batch in self.batches(split)]) if split != "train" else None
        assert asked is not None
        scores = F.normalize(asked, dim=1) @ self.documents.t()
        scores[torch.arange(len(rows)), rows[:, 1]] = -2
        grades = F.one_hot(rows[:, 2], len(self.documents)).double().numpy()
        found, numbers = ranked(scores.numpy(), grades), rows[:, 0].numpy()
        whole = np.unique(numbers)
        return Outcomes({k: np.asarray([found[k][numbers == n].mean() for n in whole]) for k in self.columns})


class ReferenceAlone(nn.Module):
    def forward(self, references: Tensor, texts: Tensor) -> Tensor:
        return references


def judged(task: Task, alone: nn.Module) -> dict[str, Any]:
    batch = len(next(iter(task.batches("train")))[1])
    rate = task.settings.learning_rate / 2
    second: dict[str, Callable[[nn.Module, Context], nn.Module]] = {
        "one stage": lambda model, _context: model,
        "then in the batch": lambda model, context: _more(model, task, context, rate),
        "then the bank (spn4cir)": lambda model, c: SPN4CIR(learning_rate=rate, temperature=0.05).apply(model, task, c),
        f"then {batch - 1} drawn targets": lambda model, c: SPN4CIR(
            learning_rate=rate, temperature=0.05, negatives=batch - 1
        ).apply(model, task, c),
    }
    found: dict[str, list[Any]] = {name: [] for name in second}
    seconds: dict[str, list[float]] = {name: [] for name in second}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        first = task.build()
        task.train(first, seed=seed)
        for name, stage in second.items():
            model = task.build()
            model.load_state_dict(first.state_dict())
            start = time.process_time()
            found[name].append(task.outcomes(stage(model, Context(seed=seed)).eval()))
            seconds[name].append(round(time.process_time() - start, 2))
    found["control: the reference alone"] = [task.outcomes(alone)]
    seconds["control: the reference alone"] = [0.0]
    base = {k: np.mean([one[k] for one in found["then in the batch"]], axis=0) for k in task.columns or ()}
    return {
        name: {
            **{k: interval(np.mean([one[k] for one in all_of], axis=0)) for k in base},
            **{f"{k} over in the batch": interval(np.mean([one[k] for one in all_of], axis=0) - base[k]) for k in base},
            "by_seed": [round(float(one["mrr"].mean()), 4) for one in all_of], "cpu_s": seconds[name],
        }
        for name, all_of in found.items()
    }  # fmt: skip


def _more(model: nn.Module, task: Task, context: Context, rate: float) -> nn.Module:
    settings = dataclasses.replace(task.settings, learning_rate=rate)
    frozen = [one for name, one in model.named_parameters() if name.startswith("pictures")]
    for one in frozen:  # as in the other rows, the index stays valid
        one.requires_grad_(False)
    retrain.train(model, task.view(settings=settings), context)
    return model


class ItemsAlone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pictures = nn.Identity()

    def forward(self, items: Tensor, changes: Tensor) -> Tensor:
        return items


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("drawn", "cranfield"))
    parser.add_argument("--data")
    parser.add_argument("--cache", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.part == "drawn":
        task: Task = ComposedTask(ComposedOptions(items=1000, examples=1280))
        rows = judged(task, ItemsAlone())
        extra: dict[str, Any] = {"items": 1000, "train": 1280, "test": 320}
    else:
        task = AnotherDocument(asked.data, asked.cache)
        rows = judged(task, ReferenceAlone())
        extra = {"documents": 1400, "train": len(task.pairs_of["train"]), "test_pairs": len(task.pairs_of["test"])}
    write("retrieval_changes", "changes", asked.part, {**extra, "seeds": SEEDS, "epochs": EPOCHS, "rows": rows})


if __name__ == "__main__":
    main()
