"""Words in pictures: what FDP's two terms bring, and what its folds take off, on drawn words.

    python -m benchmarks.retrieval.spotting [--epochs 25]

40 words of ten letters, every second one letter away from the one before; 1,000 training pictures, 250 test pictures,
24 x 72 pixels with lines and noise. Mean average precision of words among test pictures, interval over words, three
seeds of the start. Controls: an untrained network, and words asked for under another word's letters. One thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import numpy as np
import torch

from benchmarks.retrieval.records import interval, write
from lessen.method import Context
from lessen.methods.retrieval.fdp import FDP
from lessen.tasks.retrieval.words import WordsOptions, WordsTask

SEEDS = 3
TERMS = {
    "both terms": (1.0, 1.0), "no words an edit away": (1.0, 0.0),
    "neither": (0.0, 0.0),
}  # fmt: skip


def milliseconds(head: torch.nn.Module) -> float:
    """Return the processor milliseconds of a head on one picture's maps, the fastest of five rounds."""
    maps, best = torch.randn(1, 48, 3, 9), float("inf")
    with torch.no_grad():
        for _ in range(5):
            start = time.process_time()
            for _ in range(200):
                head(maps)
            best = min(best, time.process_time() - start)
    return round(1e3 * best / 200, 4)


def folded(model: Any, task: WordsTask) -> dict[str, Any]:
    """Return what the fold of a trained network changes."""
    before = task.outcomes(model)["map"]
    with torch.no_grad():
        (pictures, letters), _, _ = next(iter(task.batches("test")))
        answers, plain = model(pictures, letters), model.head
        numbers, ms = sum(one.numel() for one in plain.parameters()), milliseconds(plain)
        made: Any = FDP().apply(model, task, Context())
        off = float((made(pictures, letters) - answers).abs().max())
    return {
        "numbers": [numbers, sum(one.numel() for one in made.head.parameters())],
        "ms_a_picture": [ms, milliseconds(made.head)], "largest_difference_of_logits": off,
        "map_change": float(np.abs(task.outcomes(made)["map"] - before).max()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=25)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[np.ndarray]] = {}
    fold: dict[str, Any] = {}
    for seed in range(SEEDS):
        for name, (focus, distracted) in TERMS.items():
            task = WordsTask(WordsOptions(words=40, examples=1000, focus=focus, distracted=distracted))
            settings = dataclasses.replace(task.settings, epochs=asked.epochs, patience=asked.epochs)
            torch.manual_seed(seed)
            model = task.build()
            if name == "both terms":
                found.setdefault("control: not trained", []).append(task.outcomes(model.eval())["map"])
            task.train(model.train(), seed=seed, settings=settings)
            model.eval()
            found.setdefault(name, []).append(task.outcomes(model)["map"])
            if name == "both terms":
                wrong = WordsTask(WordsOptions(words=40, examples=1000))
                wrong.letters = wrong.letters.roll(7, 0)
                found.setdefault("control: the letters of another word", []).append(wrong.outcomes(model)["map"])
                fold = folded(model, task)
            print(seed, name, round(float(found[name][-1].mean()), 4), flush=True)
    base = np.mean(found["neither"], axis=0)
    rows = {
        name: {
            "map": interval(np.mean(values, axis=0)), "by_seed": [round(float(v.mean()), 4) for v in values],
            "over_neither": interval(np.mean(values, axis=0) - base),
        }
        for name, values in found.items()
    }  # fmt: skip
    write("retrieval_spotting", "spotting", "", {"epochs": asked.epochs, "seeds": SEEDS, "fold": fold, "rows": rows})


if __name__ == "__main__":
    main()
