"""Ids that are written: HyPE's paths of categories beside ids alone, on drawn documents and on Cranfield.

    python -m benchmarks.retrieval.writing drawn
    python -m benchmarks.retrieval.writing cranfield --data FOLDER

240 documents; a sentence (drawn: a bag of words) of each that no training saw looks for it. A T5 of two blocks and 64
numbers from scratch, three seeds; the same epochs for all. Categories: those that drawn documents come from; those of
Cranfield are found by k-means of words. Controls: paths of other documents, an untrained model. Milliseconds are of the
processor, one thread; bytes beside the model: the trie, and what an int8 index of 384 numbers would take. Units are
queries.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import numpy as np
import torch

from benchmarks.retrieval.records import interval, write
from lessen.methods.retrieval.hype import HyPE
from lessen.metrics import Outcomes
from lessen.recipe import Recipe
from lessen.tasks.retrieval.written import WrittenOptions, WrittenTask

SEEDS = 3
Found = dict[str, list[tuple[Outcomes, float]]]


def judge(found: Found, name: str, model: Any, task: WrittenTask) -> None:
    start = time.process_time()
    outcomes = task.outcomes(model.eval())
    spent = 1e3 * (time.process_time() - start) / len(task._splits["test"])
    found.setdefault(name, []).append((outcomes, spent))
    print(name, round(float(outcomes["recall@1"].mean()), 4), round(spent, 1), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("drawn", "cranfield"))
    parser.add_argument("--data")
    parser.add_argument("--epochs", type=int, default=60)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = "drawn" if asked.part == "drawn" else asked.data
    task = WrittenTask(WrittenOptions(data=data, documents=240, queries=100))
    settings = dataclasses.replace(task.settings, epochs=asked.epochs, patience=asked.epochs)
    task = task.view(settings=settings)
    wrong = task.paths()
    strangers = task.view(paths=lambda: wrong[101:] + wrong[:101])
    few = task.view(options=task.options.model_copy(update={"beams": 5}))
    found: Found = {}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        start = task.build()
        judge(found, "control: not trained", start, task)
        alone = task.build()
        alone.load_state_dict(start.state_dict())
        task.train(alone, seed=seed)
        judge(found, "ids alone, 10 beams", alone, task)
        judge(found, "ids alone, 5 beams", alone, few)
        step = HyPE(tried=3, beams=10)
        made: Any = Recipe([step]).apply(start, task, seed=seed)[0]
        for tried in (1, 3, 5):
            made.guide.tried = tried
            judge(found, f"hype, {tried} paths, 10 beams", made, task)
        judge(found, "hype, 5 paths, 5 beams", made, few)
        other: Any = Recipe([step]).apply(start, strangers, seed=seed)[0]
        judge(found, "control: 3 paths of other documents", other, task)
    columns = ("recall@1", "recall@10", "mrr")
    base = {k: np.mean([one[k] for one, _ in found["ids alone, 10 beams"]], axis=0) for k in columns}
    rows = {
        name: {
            **{k: interval(np.mean([one[k] for one, _ in values], axis=0)) for k in columns},
            "recall@1 over ids": interval(np.mean([one["recall@1"] for one, _ in values], axis=0) - base["recall@1"]),
            "by_seed": [round(float(one["recall@1"].mean()), 4) for one, _ in values],
            "ms_a_query": round(float(np.median([ms for _, ms in values])), 2),
        }
        for name, values in found.items()
    }  # fmt: skip
    sizes = {"trie": task.trie.bytes, "int8 index": 388 * len(task.ids),
             "model": sum(one.nbytes for one in task.build().parameters())}  # fmt: skip
    write("retrieval_writing", "writing", asked.part, {
        "documents": len(task.ids), "train": len(task._splits["train"]), "queries": len(task._splits["test"]),
        "epochs": asked.epochs, "seeds": SEEDS, "bytes": sizes, "rows": rows,
    })  # fmt: skip


if __name__ == "__main__":
    main()
